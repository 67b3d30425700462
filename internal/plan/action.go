package plan

import "time"

// An Action is what a route does: one of Tunnel, Forward, Redirect, Respond, Files, Block, ByName and Internal.
type Action interface{ isAction() }

// Tunnel relays bytes both ways to a target, unseen (passthrough TLS, tcp, ssh).
type Tunnel struct {
	Upstream  string
	SendProxy int // PROXY protocol version sent to the target: 0, 1 or 2
}

// Forward sends each request on to a target of an upstream.
type Forward struct {
	Upstream        string
	SendProxy       int
	Rewrite         Rewrite
	RequestHeaders  HeaderRules
	ResponseHeaders HeaderRules
	Retries         Retries
	Preview         PreviewOf
}

// PreviewOf says of a route that it shows the preview of an app, so that its pages may say what the app has said, and under
// which path. The zero value is none.
type PreviewOf struct {
	App    string
	Prefix string // that the app does not know of: Location and cookies are put below it; "" = it has a host of its own
	Base   bool   // the <base href> of its pages, too
}

// Rewrite changes what the target sees. Path replaces the whole path; SetHost is "" (keep), "target" or a name.
type Rewrite struct {
	StripPrefix, AddPrefix, Path, SetHost string
}

// HeaderRules are applied in the order remove, set, add. Values may hold placeholders such as {client_ip}.
type HeaderRules struct {
	Set, Add []Header // sorted by name
	Remove   []string // sorted
}

// Header is one field of a rule.
type Header struct{ Name, Value string }

// Empty reports whether there is nothing to do.
func (h *HeaderRules) Empty() bool { return len(h.Set)+len(h.Add)+len(h.Remove) == 0 }

// Retries say when an exchange that is safe to send again is sent again.
type Retries struct {
	Attempts int // tries in all, the first included; 0 or 1 = no retry
	Connect  bool
	Statuses []int
	Budget   float64 // retries as a share of requests, 0.2 = 20 %
}

// Redirect answers with a Location. To is "https" or a URL with {host}, {path} and {query}.
type Redirect struct {
	To     string
	Status int
}

// Respond answers with fixed content.
type Respond struct {
	Status  int
	Body    string
	Headers []Header // sorted by name
}

// Files serves a folder.
type Files struct {
	Root   string // absolute
	Browse bool
	Index  []string
	SPA    bool // unknown paths answer with the index of the root
}

// Block refuses: Status for HTTP, an alert for TLS, a close for anything else.
type Block struct{ Status int }

// ByName forwards to the name the client asks for.
type ByName struct{}

// Internal hands the exchange to a handler of our own by name.
type Internal struct{ Name string }

func (Tunnel) isAction()   {}
func (Forward) isAction()  {}
func (Redirect) isAction() {}
func (Respond) isAction()  {}
func (Files) isAction()    {}
func (Block) isAction()    {}
func (ByName) isAction()   {}
func (Internal) isAction() {}

// An Upstream is a set of targets that stand in for each other.
type Upstream struct {
	Name    string
	Inline  bool // written inside the route of the same name
	Targets []Target
	Balance Balance
	Health  *Health // nil: no active checks
	Passive Passive
	Pool    PoolSettings
	Connect time.Duration // dial timeout
	TLS     TargetTLS     // for targets with TLS
}

// A Target is one place a connection can be opened to.
type Target struct {
	Text         string // as configuration wrote it: the metric label
	Network      Network
	Host         string // name or IP; the path for a unix socket
	Port         uint16 // 0 with PreservePort
	PreservePort bool   // the port the client came to
	Weight       int    // at least 1
	MaxConns     int    // 0 = no limit
	TLS          bool   // connections to it are TLS
	App          string // whose instances are meant; Host and Port are empty then
}

// Balance says how a target is picked.
type Balance struct {
	Policy       string // "round_robin" | "least_connections" | "ip_hash" | "random_two"
	SlowStart    time.Duration
	StickyCookie string // "" = off
}

// Health is an active check.
type Health struct {
	Path              string // HTTP when set; otherwise a TCP connect
	Host              string
	StatusMin         int
	StatusMax         int
	Interval, Timeout time.Duration
	Rise, Fall        int
	SendProxy         int // checks carry what real connections carry
}

// Passive takes a target out after Fails failures within Within, for Out. Fails 0 = off.
type Passive struct {
	Fails       int
	Within, Out time.Duration
}

// PoolSettings bound the connections kept to each target.
type PoolSettings struct {
	MaxPerTarget int // 0 = no limit
	MaxIdle      int
	Idle, MaxAge time.Duration
	Queue        int
	QueueTimeout time.Duration
}
