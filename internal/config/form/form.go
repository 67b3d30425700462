// Package form says what a configuration file may hold. The comments on its types are the reference: docs/config.md, the
// JSON Schema and the errors are made from them, so a key that is not here does not exist.
//
// It promises that a value of these types is well formed by itself (a port is a port, a duration a duration). It knows
// nothing of how values agree with each other, and opens nothing.
package form

//go:generate go test -run ^TestReferenceIsFresh$ -update .

import "time"

// A File is one configuration file. Several files (`-c DIR`) add up: lists and maps grow, a single value may be set once.
type File struct {
	// Ports on which connections are forwarded by the name the client asks for: TLS by its SNI to that name, port 443;
	// HTTP by its Host to that name, its port or 80. Routes on the same port come first.
	ListenAddrs []Port `yaml:"listen_addrs"`
	// Names that by-name forwarding may reach: a name, `*.d` (here also `d` itself) or `*`. Case, port and trailing dot
	// are ignored. Without it: every public name.
	Allowlist []AllowName `yaml:"allowlist"`
	// More on by-name forwarding.
	ByName ByName `yaml:"by_name"`
	// IP addresses that a bare port number is bound on. `:80` is dual stack, `0.0.0.0:80` IPv4 only, `[::]:80` IPv6 only.
	// Default: dual stack.
	Bind Hosts `yaml:"bind"`
	// Clocks of every connection. 0 is off.
	Timeouts Timeouts `yaml:"timeouts"`
	// Client connections at once; lowered to what the descriptor limit holds.
	MaxConnections int `yaml:"max_connections" range:"1..10000000"`
	// Concurrent connections of one client address. 0 is no limit.
	MaxConnectionsPerIP int `yaml:"max_connections_per_ip" range:"0..10000000"`
	// New connections per minute of one client address. 0 is no limit.
	ConnectionRatePerIP int `yaml:"connection_rate_per_ip" range:"0..10000000"`
	// The largest head of one request or response, 1KiB to 16MiB.
	MaxHeaderBytes Size `yaml:"max_header_bytes"`
	// How long connections may go on at stop before they are cut.
	ShutdownTimeout Duration `yaml:"shutdown_timeout"`
	// How long connections are still accepted at stop after /ready has turned 503.
	ShutdownDelay Duration `yaml:"shutdown_delay"`
	// How long connections of a removed route may go on.
	DrainTimeout Duration `yaml:"drain_timeout"`
	// Networks whose PROXY header and X-Forwarded-* fields are believed.
	TrustedProxies []Network `yaml:"trusted_proxies"`
	// Ports on which a PROXY header is read. Off unless written.
	ProxyProtocol *ProxyProtocol `yaml:"proxy_protocol"`
	// Where metrics are shown: on the admin socket always, on TCP where an address is written.
	Metrics Metrics `yaml:"metrics"`
	// The admin endpoints. They cannot change at reload.
	Admin Admin `yaml:"admin"`
	// What is logged, and how.
	Log Log `yaml:"log"`
	// The folder for what must survive a restart. It cannot change at reload. Default: $STATE_DIRECTORY, else the XDG
	// state folder, else /var/lib/quaymaster.
	StateDir string `yaml:"state_dir"`
	// How certificates are ordered: those of routes and sites with `certificate: auto`. Without it: from Let's Encrypt.
	ACME *ACME `yaml:"acme"`
	// What clients are shown whose name is not known: `{cert_file, key_file}`, or `internal` (made for each name by the local
	// CA). Without it they get an alert.
	DefaultCertificate *CertificateChoice `yaml:"default_certificate"`
	// Certificates in files, for routes that say nothing about theirs and whose domains they have, and for clients whose
	// name is not known.
	Certificates []Certificate `yaml:"certificates"`
	// What happens when a port is busy. Each key may also stand in a port object.
	PortPolicy PortPolicy `yaml:"port_policy"`
	// Ports that are leased to apps, both ends included; the lowest free one first. Keep it below the ephemeral ports
	// (net.ipv4.ip_local_port_range), and away from the ports of routes.
	AppPorts PortRange `yaml:"app_ports"`
	// Where apps with `preview: true` are shown besides their routes: `http://127.0.0.1:8080/app/preview/NAME/` and
	// `http://NAME.localhost:8080/`.
	Previews Previews `yaml:"previews"`
	// The container engine. Ports that its containers publish are not leased to apps.
	Engine Engine `yaml:"engine"`
	// Programs that are run here, by name, a DNS label. `app:NAME` is one as a target.
	Apps map[string]AppEntry `yaml:"apps"`
	// Whole sites by name, in one line each. The key is a name: HTTPS on acme.tls_port, with a certificate of its own (see
	// `certificate` under routes), and a redirect there on acme.http_port. `NAME:PORT` is HTTPS on that port, without the
	// redirect; `http://NAME` and `http://NAME:PORT` are plain HTTP. The value is HOST:PORT, a port number on this host,
	// `https://HOST:PORT`, a list of those, a folder (`./public`), or a map with the keys of an action.
	Sites map[string]Site `yaml:"sites"`
	// The rules: which connections or requests, and what is done with them.
	Routes []Route `yaml:"routes"`
	// Targets that several routes share, by name, with the keys of a forward action.
	Upstreams map[string]Action `yaml:"upstreams"`
	// SSH by port, in the older flat form. Each becomes a route with `protocols: [ssh]`.
	SSHRoutes []SSHRoute `yaml:"ssh_routes"`
	// Older form, accepted with a warning and without effect: see `pool` in an action.
	ConnectionPool any `yaml:"connection_pool"`
	// Older form, accepted with a warning and without effect: see `http3` (a later version).
	UDPListenAddrs any `yaml:"udp_listen_addrs"`
	// Older form, accepted with a warning and without effect: see `http3` (a later version).
	QUICConfig any `yaml:"quic_config"`
	// Older form, accepted with a warning and without effect: see `http3` (a later version).
	HTTP3Config any `yaml:"http3_config"`
	// Older form, accepted with a warning and without effect: see `match.protocols` in a route.
	ProtocolRouting any `yaml:"protocol_routing"`
}

// Defaults sets what holds when a file says nothing.
func (f *File) Defaults() {
	f.ByName.Defaults()
	f.Timeouts.Defaults()
	f.MaxConnections = 10000
	f.MaxHeaderBytes = 64 << 10
	f.ShutdownTimeout = Duration(30 * time.Second)
	f.DrainTimeout = Duration(5 * time.Minute)
	f.Metrics.Defaults()
	f.Admin.Defaults()
	f.Log.Defaults()
	f.PortPolicy.Defaults()
	f.AppPorts = PortRange{32100, 32200}
	f.Engine.Defaults()
	f.Previews.Defaults()
}

// ByName bounds by-name forwarding.
type ByName struct {
	// Also reach loopback, link-local, private, carrier-NAT, multicast and NAT64 addresses. Our own ports never.
	AllowPrivate bool `yaml:"allow_private"`
	// HOST:PORT of a DNS server. Default: the system's.
	Resolver HostPort `yaml:"resolver"`
	// Ports that may be reached.
	Ports []PortNumber `yaml:"ports"`
}

// Defaults of by_name.
func (b *ByName) Defaults() { b.Ports = []PortNumber{80, 443} }

// Timeouts are clocks.
type Timeouts struct {
	// For opening a connection to a target.
	Connect Duration `yaml:"connect"`
	// For a complete PROXY header, TLS hello or first line.
	ClientHello Duration `yaml:"client_hello"`
	// For a TLS handshake, after its hello.
	TLSHandshake Duration `yaml:"tls_handshake"`
	// How long a client may say nothing on a port that also has a tcp route, before it is taken to that route.
	Sniff Duration `yaml:"sniff"`
	// For a complete request head.
	RequestHeader Duration `yaml:"request_header"`
	// Between two requests on one connection.
	KeepAlive Duration `yaml:"keep_alive"`
	// For the head of a target's answer.
	ResponseHeader Duration `yaml:"response_header"`
	// How long a peer may not take bytes that are ready, or not go on with a request body it has announced.
	BodyStall Duration `yaml:"body_stall"`
	// How long a tunnel, stream or upgraded connection may carry no byte in either direction.
	Idle Duration `yaml:"idle"`
}

// Defaults of timeouts.
func (t *Timeouts) Defaults() {
	*t = Timeouts{
		Connect: Duration(10 * time.Second), ClientHello: Duration(5 * time.Second), TLSHandshake: Duration(10 * time.Second), Sniff: Duration(500 * time.Millisecond),
		RequestHeader: Duration(30 * time.Second), KeepAlive: Duration(75 * time.Second),
		BodyStall: Duration(60 * time.Second), Idle: Duration(300 * time.Second),
	}
}

// ProxyProtocol says where and from whom a PROXY header is read.
type ProxyProtocol struct {
	// Ports, as in a route's match.
	Ports []Port `yaml:"ports"`
	// Networks that may send one. Default: trusted_proxies.
	From []Network `yaml:"from"`
	// `require` refuses a connection of these networks without the header, `accept` takes it as it is.
	Policy string `yaml:"policy" oneof:"require,accept"`
}

// Defaults of proxy_protocol.
func (p *ProxyProtocol) Defaults() { p.Policy = "require" }

// Metrics are shown in the Prometheus text format.
type Metrics struct {
	// Show them at all.
	Enabled bool `yaml:"enabled"`
	// HOST:PORT of a listener of their own.
	Address ListenAddress `yaml:"address"`
}

// Defaults of metrics.
func (m *Metrics) Defaults() { m.Enabled = true }

// Admin is the API for people and tools on this host.
type Admin struct {
	// Path of the unix socket, at most 104 bytes. Default: admin.sock in a runtime folder of our own.
	Socket string `yaml:"socket"`
	// Octal mode of the socket.
	Mode Mode `yaml:"mode"`
	// Group of the socket.
	Group string `yaml:"group"`
	// HOST:PORT for TCP as well. Needs token_file.
	Address ListenAddress `yaml:"address"`
	// File with the token that TCP clients send.
	TokenFile string `yaml:"token_file"`
	// What TCP clients may do: `read`, `write`. With `run` whoever may write, members of `group` too, may also make apps,
	// which run commands as any user; without it root and the daemon's own user may, and others on the socket for apps
	// whose `user` they are.
	Allow []string `yaml:"allow" oneof:"read,write,run"`
}

// Defaults of admin.
func (a *Admin) Defaults() { a.Mode, a.Allow = "0600", []string{"read"} }

// Log is about the daemon's own log and the access log.
type Log struct {
	// The least important lines that are written.
	Level string `yaml:"level" oneof:"debug,info,warn,error"`
	// `auto` is text on a terminal, else JSON.
	Format string `yaml:"format" oneof:"auto,json,text"`
	// One line per exchange or tunnel.
	Access Access `yaml:"access"`
}

// Defaults of log.
func (l *Log) Defaults() { l.Level, l.Format = "info", "auto"; l.Access.Defaults() }

// Access is the access log.
type Access struct {
	// Write it at all.
	Enabled bool `yaml:"enabled"`
	// How a line looks.
	Format string `yaml:"format" oneof:"json,text"`
	// Keep one line in so many; errors are always kept.
	Sample int `yaml:"sample" range:"1..1000000"`
	// A file. Default: stdout.
	File string `yaml:"file"`
}

// Defaults of log.access.
func (a *Access) Defaults() { a.Enabled, a.Format, a.Sample = true, "json", 1 }

// PortPolicy says what happens when a port is busy.
type PortPolicy struct {
	// At start: `retry` with growing pauses while everything else serves, or `fail`.
	OnBusy string `yaml:"on_busy" oneof:"retry,fail"`
	// Stop trying when the port could not be had for so long; a reload starts over. 0 is never.
	GiveUpAfter Duration `yaml:"give_up_after"`
	// Which process that holds the port may be ended (TERM, and KILL 10 seconds later): none, one that quaymaster itself
	// started, or any of its own user. Never process 1, another user's, a systemd service's or a container's.
	TakeOver string `yaml:"take_over" oneof:"never,own,any"`
	// Bind with SO_REUSEPORT, so that several quaymasters of one user that all say so share the port.
	ReusePort bool `yaml:"reuse_port"`
}

// Defaults of port_policy.
func (p *PortPolicy) Defaults() { p.OnBusy, p.TakeOver = "retry", "never" }

// Engine is podman or docker.
type Engine struct {
	// `auto` asks whichever answers at the usual places, $DOCKER_HOST included.
	Kind string `yaml:"kind" oneof:"auto,podman,docker"`
	// A path or unix:// URL instead of the usual places.
	Socket EngineSocket `yaml:"socket"`
	// Follow the labels of running containers that have `quaymaster.enable=true`: they make routes to themselves.
	Labels bool `yaml:"labels"`
	// Ports that such routes may be on: numbers, ranges or `"127.0.0.1:8443"`. A host without a port is on 443, and with
	// `http://` on 80, where those are among them, else on the first. Default: the ports of `sites`, 443 and 80 included.
	Ports []PortText `yaml:"ports"`
	// Domains that such routes may have: a name, `*.d` or `**.d`. Default: every name, but no pattern. What a route of a
	// file or of the API spells out, they never get.
	Domains []Domain `yaml:"domains"`
	// Read the common labels of Traefik too, of containers with `traefik.enable=true` and no labels of ours.
	ImportTraefik bool `yaml:"import_traefik"`
	// When the images of apps are fetched from their registry: where they are `missing`, `always` before a start, or `never`.
	Pull string `yaml:"pull" oneof:"missing,always,never"`
}

// Defaults of engine.
func (e *Engine) Defaults() { e.Kind, e.Pull, e.Labels = "auto", "missing", true }

// Previews are the addresses at which apps are shown besides their routes.
type Previews struct {
	// IP addresses to listen on. Default: 127.0.0.1. Whoever reaches them sees previews, and what the apps say.
	Bind Hosts `yaml:"bind"`
	// The port, which routes and sites may share. Default: 8080.
	Port PortNumber `yaml:"port"`
	// The path before the name of an app. It is not sent on: X-Forwarded-Prefix tells the app of it.
	Path PlainPath `yaml:"path"`
	// The name below which each app has its own. `*.localhost` is this machine in browsers.
	Domain HostName `yaml:"domain"`
	// Put the `<base href="/">` of pages below the path, for apps whose router goes by it. It is looked for in the first
	// 16 KiB of HTML that is not compressed; nothing else in a body is ever changed.
	BaseHref bool `yaml:"base_href"`
}

// Defaults of previews.
func (p *Previews) Defaults() { p.Port, p.Path, p.Domain = 8080, "/app/preview", "localhost" }

// SSHRoute is one entry of the older form.
type SSHRoute struct {
	// The port clients come to.
	ListenPort PortNumber `yaml:"listen_port"`
	// The host of the SSH server.
	DestinationHost HostName `yaml:"destination_host"`
	// The port of the SSH server.
	DestinationPort PortNumber `yaml:"destination_port"`
}

// Defaults of ssh_routes.
func (s *SSHRoute) Defaults() { s.DestinationPort = 22 }
