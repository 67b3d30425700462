// Package plan says what should be true of this machine: listeners, routes and upstreams as sorted, immutable values.
//
// It promises that two plans can be compared, printed and shown, and that a value which did not change between two
// plans is the same pointer in both. It never does anything: it opens no socket, reads no file and starts nothing.
package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Plan is one whole wish. Nothing in it is changed after it was built; whoever needs another one builds another one.
type Plan struct {
	Settings  Settings
	Ports     []*Port     // sorted by Addr; one entry per socket, overlapping wishes already merged
	Routes    []*Route    // sorted by precedence-neutral identity: Name
	Upstreams []*Upstream // sorted by Name; an upstream written inside a route bears the route's name

	Certificates []*Certificate // what clients are shown, sorted by Source and then by Names
	Apps         []*App         // sorted by Name

	// Where says where each object was written: "route/api", "upstream/web", "port/:80". It is no part of a value's
	// identity, so that a line added above a route does not change the route.
	Where map[string]Pos
}

// Pos is a place in a configuration file. The zero Pos is "not from a file".
type Pos struct {
	File      string `json:"file,omitempty"`
	Line, Col int    `json:",omitempty"`
}

// Source says which layer an object came from: a file, the API, or a container by its name ("container web (podman)"). The
// file wins over the API, and the API over containers.
type Source string

// Container reports whether the source is a container.
func (s Source) Container() bool { return strings.HasPrefix(string(s), "container ") }

// The layers of a configuration.
const (
	FromFile Source = "file"
	FromAPI  Source = "api"
)

// Settings are the keys that belong to no single object.
type Settings struct {
	Timeouts            Timeouts
	MaxConnections      int     // client connections at once, before it is clamped to the descriptor limit
	MaxPerIP            int     // concurrent connections of one client address; 0 = no limit
	RatePerIP           float64 // new connections per minute of one client address; 0 = no limit
	MaxHeaderBytes      int
	ShutdownTimeout     time.Duration
	ShutdownDelay       time.Duration
	DrainTimeout        time.Duration
	TrustedProxies      []netip.Prefix
	ByName              ByNameSettings
	Metrics             MetricsSettings
	Admin               AdminSettings // cannot change at reload
	StateDir            string        // cannot change at reload
	LogLevel, LogFormat string        // "debug|info|warn|error", "auto|json|text"
	AccessLog           AccessLog
	AppPorts            PortRange // what is leased to apps
	Previews            *Previews // nil: no previews
	Engine              EngineSettings
	Labels              LabelSettings
	ACME                *ACME       // nil: no certificate is to be ordered
	DefaultCertificate  *CertSource // CertFiles or CertInternal, for clients without a known name; nil: none
}

// Timeouts are the clocks of a plain connection. In a Route they are complete: what the route does not say is the
// global value. 0 means off where the reference allows it.
type Timeouts struct {
	Connect        time.Duration
	ClientHello    time.Duration
	TLSHandshake   time.Duration
	Sniff          time.Duration
	RequestHeader  time.Duration
	KeepAlive      time.Duration
	ResponseHeader time.Duration
	BodyStall      time.Duration
	Idle           time.Duration
}

// ByNameSettings bound what by-name forwarding may reach.
type ByNameSettings struct {
	Allowlist    []string // exact, "*.d" (here also d itself) or "*"; empty = every public name
	AllowPrivate bool
	Resolver     string // host:port of a DNS server; "" = the system's
	Ports        []uint16
}

// MetricsSettings say where metrics are shown besides the admin socket. Address is "" or HOST:PORT.
type MetricsSettings struct {
	Enabled bool
	Address string
}

// AdminSettings describe the admin endpoints. Mode is octal text ("0600").
type AdminSettings struct {
	Socket, Mode, Group string
	Address, TokenFile  string
	Token               Secret
	Allow               []string // "read", "write": what TCP clients with the token may do
}

// AccessLog says whether and where one line is written per exchange. Sample n keeps one line in n (errors always).
type AccessLog struct {
	Enabled bool
	Format  string // "json" | "text"
	Sample  int
	File    string // "" = stdout
}

// A PortRange is the ports from Lo to Hi, both included. The zero PortRange holds port 0 alone, which is none.
type PortRange struct{ Lo, Hi uint16 }

// Has reports whether the range holds the port.
func (r PortRange) Has(port uint16) bool { return r.Lo <= port && port <= r.Hi }

// String is the range as configuration writes it.
func (r PortRange) String() string {
	if r.Lo == r.Hi {
		return strconv.Itoa(int(r.Lo))
	}
	return strconv.Itoa(int(r.Lo)) + "-" + strconv.Itoa(int(r.Hi))
}

// MarshalText makes a range a text in JSON and YAML.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// EngineSettings say which container engine is asked, and when images of apps are fetched. Socket is "" or the path of a unix socket.
type EngineSettings struct {
	Kind   string // "auto" | "podman" | "docker"
	Socket string
	Pull   string // "missing" | "always" | "never"
}

// LabelSettings say what the labels of containers may ask for. Ports and Domains are as configuration writes them.
type LabelSettings struct {
	Enabled bool
	Ports   []string // none: the ports of sites
	Domains []string // none: every name, and no pattern
	Traefik bool     // labels of Traefik are read, too
}

// A Secret prints as "***" wherever it is printed.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString keeps %#v from showing the value.
func (s Secret) GoString() string { return s.String() }

// MarshalText keeps JSON from showing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Port is one listening socket the plan wants.
type Port struct {
	Addr     Addr
	Fallback []Addr // tried in order when Addr is busy
	Policy   PortPolicy
	Proxy    *ProxyProtocol // nil: no PROXY header is read
	Users    []string       // who wants it, sorted: "route api", "by_name"; for people, not for matching
}

// PortPolicy says what happens when a port is busy.
type PortPolicy struct {
	OnBusy      string        // "retry" | "fail"
	GiveUpAfter time.Duration // 0 = never
	TakeOver    string        // "never" | "own" | "any"
	ReusePort   bool
}

// ProxyProtocol says from whom a PROXY header is read on a port.
type ProxyProtocol struct {
	From    []netip.Prefix
	Require bool // false: a trusted sender may also send none
}

// A Route is one rule: which connections or requests it takes, and what is done with them.
type Route struct {
	Name     string
	Source   Source
	Order    int // place in its layer; the last tie-breaker
	Priority int
	Rank     int // of a container's route, and of a preview by host: higher comes first among those for the same host, before paths count
	Match    Match
	TLS      *TLS // nil: for plain clients only
	Action   Action
	Timeouts Timeouts // complete
	Security Security
	OnRemove OnRemove
}

// Match holds the conditions of a route; an empty one matches anything. All set conditions must hold.
type Match struct {
	Ports     []Addr   // expanded, sorted; never empty
	Domains   []string // lower case, no trailing dot: "a.b", "*.b", "**.b"
	Paths     []string // "/v1/*", "/users/:id"
	Methods   []string
	Headers   []FieldMatch // sorted by name
	Query     []FieldMatch // sorted by name
	Clients   []netip.Prefix
	Protocols Protocols
	Preview   *PreviewMatch // nil: no route of a preview
}

// A FieldMatch wants a header or query parameter to equal Value or, if Regex is set, to match it (unanchored).
type FieldMatch struct {
	Name, Value, Regex string
}

// Protocols is a set of protocol kinds. The empty set is "any".
type Protocols uint16

// The protocol kinds. TLS, SSH and TCP belong to the connection stage, the others to the request stage.
const (
	ProtoHTTP1 Protocols = 1 << iota
	ProtoH2
	ProtoH3
	ProtoGRPC
	ProtoWebSocket
	ProtoSocketIO
	ProtoSOAP
	ProtoJSONRPC
	ProtoTLS
	ProtoSSH
	ProtoTCP
)

// ConnProtocols are the kinds that make a route a tunnel of the connection stage.
const ConnProtocols = ProtoTLS | ProtoSSH | ProtoTCP

// ProtocolNames gives the name of each kind as configuration writes it.
var ProtocolNames = []struct {
	Name string
	Bit  Protocols
}{
	{"http1", ProtoHTTP1},
	{"h2", ProtoH2},
	{"h3", ProtoH3},
	{"grpc", ProtoGRPC},
	{"websocket", ProtoWebSocket},
	{"socketio", ProtoSocketIO},
	{"soap", ProtoSOAP},
	{"jsonrpc", ProtoJSONRPC},
	{"tls", ProtoTLS},
	{"ssh", ProtoSSH},
	{"tcp", ProtoTCP},
}

// Names lists the kinds in the set in a fixed order.
func (p Protocols) Names() []string {
	var out []string
	for _, n := range ProtocolNames {
		if p&n.Bit != 0 {
			out = append(out, n.Name)
		}
	}
	return out
}

// Security bounds who may use a route and how much.
type Security struct {
	Allow, Deny []netip.Prefix // deny wins; an empty Allow admits everyone
	MaxConns    int            // exchanges and tunnels in progress; 0 = no limit
	Rate        *RateLimit
	MaxBody     int64 // bytes; 0 = no limit
}

// RateLimit admits Requests per Per for each key, with bursts of Burst.
type RateLimit struct {
	Requests int
	Per      time.Duration
	Burst    int
	Key      string // "client_ip" | "header:NAME" | "route"
}

// OnRemove says what becomes of a route's tunnels and streams when it goes away.
type OnRemove string

// The two answers.
const (
	DrainOnRemove OnRemove = "drain"
	CloseOnRemove OnRemove = "close"
)

// ConnStage reports whether the route is chosen once per connection: passthrough, tcp, ssh or tls.
func (r *Route) ConnStage() bool {
	if r.TLS != nil && r.TLS.Mode == Passthrough {
		return true
	}
	_, tunnel := r.Action.(Tunnel)
	return tunnel
}

// Route returns the route of that name, or nil.
func (p *Plan) Route(name string) *Route {
	i, ok := slices.BinarySearchFunc(p.Routes, name, func(r *Route, n string) int { return cmp.Compare(r.Name, n) })
	if !ok {
		return nil
	}
	return p.Routes[i]
}

// Upstream returns the upstream of that name, or nil.
func (p *Plan) Upstream(name string) *Upstream {
	i, ok := slices.BinarySearchFunc(p.Upstreams, name, func(u *Upstream, n string) int { return cmp.Compare(u.Name, n) })
	if !ok {
		return nil
	}
	return p.Upstreams[i]
}
