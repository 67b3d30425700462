package plan

import "time"

// An App is a program that is run here, as a process (Command) or in a container (Image).
type App struct {
	Name   string
	Source Source

	Command       []string // program and arguments; ${PORT}, ${HOST}, ${SOCKET} and ${QUAYMASTER_URL} are put in at each start
	Image         string
	ContainerPort uint16         // of an Image: what it listens on inside; 0 = what PORT tells it
	Engine        EngineSettings // of an Image: who runs it at its next start
	Dir           string         // absolute; "" = the folder of the configuration
	User          string         // "" = as we are
	Env           []EnvVar
	EnvRequired   []string // must be in Env or, with InheritEnv, in our environment
	InheritEnv    bool

	Port       uint16 // 0 = leased
	Socket     string // "tcp" | "fd" | "unix"
	OnPortBusy string // "next" | "retry" | "fail" | "take_over"
	TakeOver   string // whose processes take_over ends: "own" | "any", as the policy for ports has it; "" where it is not asked for
	Start      string // "always" | "on_request"
	IdleStop   time.Duration
	DependsOn  []string // sorted
	Preview    bool

	Ready   Ready
	Health  *AppHealth // nil: the process alone is watched
	Restart Restart
	Stop    AppStop
	Limits  AppLimits
	Logs    AppLogs
}

// EnvVar is one variable of an app's environment. Values may hold the placeholders of Command.
type EnvVar struct{ Name, Value string }

// Ready says when an app serves: when it answers HTTP at Path, when it says Log, else when it takes a connection.
type Ready struct {
	Path    string
	Log     string // a regular expression on a line of output
	Timeout time.Duration
}

// AppHealth is a check of an app that is ready.
type AppHealth struct {
	Path              string // "" = a TCP connect
	Interval, Timeout time.Duration
	Fall              int
	OnUnhealthy       string // "restart" | "route_away" | "nothing"
}

// Restart says what follows an exit. More than Max exits within Within are a crash loop.
type Restart struct {
	Policy              string // "always" | "on-failure" | "no"
	Backoff, MaxBackoff time.Duration
	Max                 int
	Within              time.Duration
	MinUptime           time.Duration // longer ones begin the back-off anew
}

// AppStop is how an app is ended: Signal ("TERM"), then KILL for the whole group after Timeout.
type AppStop struct {
	Signal  string
	Timeout time.Duration
}

// AppLimits bound an app. 0 = no limit.
type AppLimits struct {
	CPU    float64 // processors
	Memory int64   // bytes
	NoFile uint64  // open files of a process
}

// AppLogs bound what is kept of an app's output: Lines in memory, Files on disk.
type AppLogs struct{ Lines, Files int }

// Previews say where apps are shown besides their routes: at each of Addrs under Path/NAME/ and, by host, as NAME.Domain.
type Previews struct {
	Addrs  []Addr // sorted
	Path   string // "/app/preview"
	Domain string
	Base   bool // <base href> in pages is put below Path
}

// A PreviewMatch holds the conditions of a route that a preview brings. Whoever asks for another host than an IP address,
// localhost, Domain, a name below those two or one that a route of the file spells out is not taken: under a name of its
// own a page from elsewhere could read previews.
type PreviewMatch struct {
	Domain string
	App    string
	// From is the path of the preview whose pages ask, by their Referer on the host that is asked; "" = whoever asks.
	From string
	// Alone: the browser says that a page of the host itself asks, and that it has opened no other preview there.
	Alone bool
}

// String is the conditions for people.
func (m PreviewMatch) String() string {
	switch {
	case m.From != "":
		return "asked by a page below " + m.From
	case m.Alone:
		return "asked by a page, where " + m.App + " is the only preview that is open"
	}
	return "asked at an address, localhost, " + m.Domain + " or a name that a route of the file has"
}
