package form

import "time"

// A Route is one rule.
type Route struct {
	// Its identity and metrics label, a DNS label. Default: made from the match.
	Name Name `yaml:"name"`
	// Higher comes first.
	Priority int `yaml:"priority" range:"-1000000..1000000"`
	// What it takes. All conditions must hold.
	Match Match `yaml:"match"`
	// What is done.
	Action *Action `yaml:"action"`
	// Clocks of its own, over the global ones.
	Timeouts RouteTimeouts `yaml:"timeouts"`
	// Who may use it, and how much.
	Security Security `yaml:"security"`
	// What happens to its tunnels and streams when the route goes away.
	OnRemove string `yaml:"on_remove" oneof:"drain,close"`
}

// Defaults of a route.
func (r *Route) Defaults() { r.OnRemove = "drain" }

// Match holds the conditions of a route.
type Match struct {
	// Where clients come to: `443`, `"8000-8010"`, `"127.0.0.1:9443"`, `"unix:/run/x.sock"`, `"fd:https"` (a socket of
	// systemd), or an object.
	Ports []Port `yaml:"ports"`
	// Names, `*.d` (exactly one label more) or `**.d` (one or more). Default: any name.
	Domains []Domain `yaml:"domains"`
	// Paths: `/v1/*` matches /v1 and all below it, `:name` one segment. Default: any path.
	Path []PathPattern `yaml:"path"`
	// Methods, in capitals.
	Methods []Method `yaml:"methods"`
	// Header fields: a value, or `{regex: ...}`.
	Headers map[string]Want `yaml:"headers"`
	// Query parameters: a value, or `{regex: ...}`.
	Query map[string]Want `yaml:"query"`
	// Networks that clients come from.
	ClientIPs []Network `yaml:"client_ips"`
	// What the client speaks. `tcp`, `ssh` and `tls` make a tunnel.
	Protocols []string `yaml:"protocols" oneof:"http1,websocket,socketio,soap,jsonrpc,tls,ssh,tcp"`
}

// PortObject is a port with its own policy.
type PortObject struct {
	// The port, as it is written without an object.
	Port PortText `yaml:"port"`
	// Ports that are tried in order when it is busy.
	Fallback []PortText `yaml:"fallback"`
	// As in port_policy.
	OnBusy *string `yaml:"on_busy" oneof:"retry,fail"`
	// As in port_policy.
	GiveUpAfter *Duration `yaml:"give_up_after"`
	// As in port_policy.
	TakeOver *string `yaml:"take_over" oneof:"never,own,any"`
	// As in port_policy.
	ReusePort *bool `yaml:"reuse_port"`
}

// An Action has one of targets, upstream, redirect, respond, files and block. The name of the block is its type.
type Action struct {
	// The type in words: it may be written, and must then agree.
	Type string `yaml:"type" oneof:"forward,redirect,respond,files,block"`
	// Where connections and requests go: HOST:PORT, `https://HOST:PORT` (by TLS), `unix:PATH`, or an object.
	Targets []Target `yaml:"targets"`
	// The name of shared targets.
	Upstream Name `yaml:"upstream"`
	// What is done with TLS.
	TLS *TLS `yaml:"tls"`
	// How targets with TLS are reached: those written `https://`, and all of a route with `tls: {mode: reencrypt}`.
	TargetTLS *TargetTLS `yaml:"target_tls"`
	// What is spoken to the target. Both are HTTP/1.1 in this version.
	Protocol string `yaml:"protocol" oneof:"auto,http1"`
	// How a target is picked.
	LoadBalance *LoadBalance `yaml:"load_balance"`
	// Active checks. Off unless written.
	HealthCheck *HealthCheck `yaml:"health_check"`
	// Takes a target out after failures of real traffic. Off unless written.
	PassiveHealth *PassiveHealth `yaml:"passive_health"`
	// The connections that are kept to each target.
	Pool *Pool `yaml:"pool"`
	// When an exchange that is safe to send again is sent again. Off unless written.
	Retries *Retries `yaml:"retries"`
	// Begin each connection to a target with a PROXY header of this version.
	SendProxyProtocol string `yaml:"send_proxy_protocol" oneof:"v1,v2"`
	// What the target sees of path and host.
	Rewrite *Rewrite `yaml:"rewrite"`
	// Fields of the request: removed, then set, then added. Values may hold `{client_ip}`, `{host}`, `{path}`, `{query}`,
	// `{request_id}`, `{route}` and `{scheme}`.
	RequestHeaders *Headers `yaml:"request_headers"`
	// Fields of the response.
	ResponseHeaders *Headers `yaml:"response_headers"`
	// Answer with another place.
	Redirect *Redirect `yaml:"redirect"`
	// Answer with fixed content.
	Respond *Respond `yaml:"respond"`
	// Answer with the files of a folder.
	Files *Files `yaml:"files"`
	// Refuse: HTTP with a status, TLS with an alert, anything else by closing.
	Block *Block `yaml:"block"`
}

// LoadBalance is how a target is picked.
type LoadBalance struct {
	// The rule.
	Policy string `yaml:"policy" oneof:"round_robin,least_connections,ip_hash,random_two"`
	// A target that has come back gets its full share after so long.
	SlowStart Duration `yaml:"slow_start"`
	// Keep a client on its target.
	Sticky Sticky `yaml:"sticky"`
}

// Defaults of load_balance.
func (l *LoadBalance) Defaults() { l.Policy = "round_robin" }

// Sticky keeps a client on its target.
type Sticky struct {
	// The name of the cookie. Off unless written.
	Cookie Token `yaml:"cookie"`
}

// HealthCheck is an active check: `http` or `tcp`.
type HealthCheck struct {
	// The path to ask for.
	HTTP string `yaml:"http"`
	// Only open a connection.
	TCP bool `yaml:"tcp"`
	// The Host to ask for. Default: the target's.
	Host string `yaml:"host"`
	// Statuses that are well: one, or a range.
	Status StatusRange `yaml:"status"`
	// Between two checks.
	Interval Duration `yaml:"interval"`
	// For one check.
	Timeout Duration `yaml:"timeout"`
	// Good checks in a row until a target is up.
	Rise int `yaml:"rise" range:"1..100"`
	// Bad checks in a row until a target is down.
	Fall int `yaml:"fall" range:"1..100"`
}

// Defaults of health_check.
func (h *HealthCheck) Defaults() {
	*h = HealthCheck{
		Status: StatusRange{200, 399}, Interval: Duration(10 * time.Second), Timeout: Duration(2 * time.Second), Rise: 2, Fall: 3,
	}
}

// PassiveHealth takes a target out after failures.
type PassiveHealth struct {
	// So many failures; 0 is off,
	Fails int `yaml:"fails" range:"0..1000000"`
	// within so long,
	Within Duration `yaml:"within"`
	// take it out for so long.
	Out Duration `yaml:"out"`
}

// Defaults of passive_health.
func (p *PassiveHealth) Defaults() {
	*p = PassiveHealth{Fails: 3, Within: Duration(10 * time.Second), Out: Duration(10 * time.Second)}
}

// Pool bounds the connections to each target.
type Pool struct {
	// Connections at once; 0 is no limit. What comes above it waits.
	MaxPerTarget int `yaml:"max_per_target" range:"0..1000000"`
	// Unused connections that are kept.
	MaxIdle int `yaml:"max_idle" range:"0..1000000"`
	// How long an unused connection is kept.
	Idle Duration `yaml:"idle"`
	// How old a connection may grow and be used again.
	MaxAge Duration `yaml:"max_age"`
	// How many may wait.
	Queue int `yaml:"queue" range:"0..1000000"`
	// How long one waits.
	QueueTimeout Duration `yaml:"queue_timeout"`
}

// Defaults of pool.
func (p *Pool) Defaults() {
	*p = Pool{
		MaxIdle: 128, Idle: Duration(60 * time.Second), MaxAge: Duration(5 * time.Minute),
		Queue: 100, QueueTimeout: Duration(5 * time.Second),
	}
}

// Retries say when an exchange is sent again.
type Retries struct {
	// Tries in all, the first included.
	Attempts int `yaml:"attempts" range:"1..10"`
	// After what: `connect`, or a status from 500 to 599.
	On []RetryCause `yaml:"on"`
	// Retries as a share of requests.
	Budget Percent `yaml:"budget"`
}

// Defaults of retries.
func (r *Retries) Defaults() {
	*r = Retries{Attempts: 2, On: []RetryCause{{Connect: true}}, Budget: 0.2}
}

// Rewrite is what the target sees.
type Rewrite struct {
	// Taken off the front of the path, by whole segments.
	StripPrefix PlainPath `yaml:"strip_prefix"`
	// Put in front of the path.
	AddPrefix PlainPath `yaml:"add_prefix"`
	// The Host: `target`, or a name. Default: the client's.
	SetHost string `yaml:"set_host"`
	// Instead of the whole path.
	Path PlainPath `yaml:"path"`
}

// Headers are changes to header fields.
type Headers struct {
	// Instead of all fields of that name.
	Set map[string]HeaderValue `yaml:"set"`
	// Besides those of that name.
	Add map[string]HeaderValue `yaml:"add"`
	// Taken out.
	Remove []Token `yaml:"remove"`
}

// Redirect answers with another place.
type Redirect struct {
	// `https`, or a URL that may hold `{host}`, `{path}` and `{query}`.
	To RedirectTo `yaml:"to"`
	// 301, 302, 303, 307 or 308.
	Status int `yaml:"status" range:"301..308"`
}

// Defaults of redirect.
func (r *Redirect) Defaults() { r.Status = 308 }

// Respond answers with fixed content.
type Respond struct {
	// The status.
	Status int `yaml:"status" range:"200..599"`
	// The content, at most 1MiB.
	Body string `yaml:"body"`
	// Header fields.
	Headers map[string]HeaderValue `yaml:"headers"`
}

// Defaults of respond.
func (r *Respond) Defaults() { r.Status = 200 }

// Files answers with the files of a folder.
type Files struct {
	// The folder, relative to the configuration file.
	Root string `yaml:"root"`
	// List folders that have no index.
	Browse bool `yaml:"browse"`
	// Names that stand for a folder.
	Index []FileName `yaml:"index"`
	// Answer unknown paths with the index of the root.
	SPA bool `yaml:"spa"`
}

// Defaults of files.
func (f *Files) Defaults() { f.Index = []FileName{"index.html"} }

// Block refuses.
type Block struct {
	// The status for HTTP.
	Status int `yaml:"status" range:"400..599"`
}

// Defaults of block.
func (b *Block) Defaults() { b.Status = 403 }

// RouteTimeouts are the clocks that begin when the route is known.
type RouteTimeouts struct {
	// As in the global timeouts.
	Connect *Duration `yaml:"connect"`
	// As in the global timeouts.
	ResponseHeader *Duration `yaml:"response_header"`
	// As in the global timeouts.
	BodyStall *Duration `yaml:"body_stall"`
	// As in the global timeouts.
	Idle *Duration `yaml:"idle"`
}

// Security bounds who may use a route and how much.
type Security struct {
	// Networks that may use it. Default: all.
	Allow []Network `yaml:"allow"`
	// Networks that may not. This wins.
	Deny []Network `yaml:"deny"`
	// Exchanges and tunnels in progress. 0 is no limit.
	MaxConnections int `yaml:"max_connections" range:"0..10000000"`
	// How many requests, or connections of a tunnel, are let in.
	RateLimit *RateLimit `yaml:"rate_limit"`
	// The largest request body. 0 is no limit.
	MaxBody Size `yaml:"max_body"`
}

// RateLimit is a token bucket for each key.
type RateLimit struct {
	// So many
	Requests int `yaml:"requests" range:"1..100000000"`
	// in so long,
	Per Duration `yaml:"per"`
	// with this many at once. Default: as requests.
	Burst int `yaml:"burst" range:"0..100000000"`
	// What is counted: `client_ip`, `header:NAME` or `route` (all together).
	Key RateKey `yaml:"key"`
}

// Defaults of rate_limit.
func (r *RateLimit) Defaults() { r.Per, r.Key = Duration(time.Second), "client_ip" }
