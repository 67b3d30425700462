package form

import (
	"net"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// PortNumber is a port from 1 to 65535.
type PortNumber uint16

// ReadText reads it.
func (p *PortNumber) ReadText(s string) error {
	n, err := portNumber(s)
	*p = PortNumber(n)
	return err
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	switch {
	case err != nil:
		return 0, strict.Faultf("write a number from 1 to 65535", "%q is no port", short(s))
	case n < 1 || n > 65535:
		return 0, strict.Faultf("write a number from 1 to 65535", "there is no port %d", n)
	}
	return uint16(n), nil
}

// PortText is where clients come to: `443`, `8000-8010`, `127.0.0.1:9443`, `:80`, `unix:/run/x.sock` or `fd:https`.
type PortText struct {
	Text   string
	Bare   bool       // a number alone: the host is that of `bind`
	IP     netip.Addr // zero: both families
	Lo, Hi uint16
	Unix   string // a path
	FD     string // the name of a socket of systemd
}

// maxSocketPath is what every system takes as the path of a unix socket.
const maxSocketPath = 104

// SocketPath says what is wrong with the path of a unix socket.
func SocketPath(s string) error {
	switch {
	case s == "":
		return strict.Faultf("write unix:/run/x.sock", "the path of the unix socket is missing")
	case len(s) > maxSocketPath:
		return strict.Faultf("choose a shorter one, such as /run/x.sock", "the path of the unix socket has %d bytes, more than %d", len(s), maxSocketPath)
	}
	return nil
}

// ReadText reads it.
func (p *PortText) ReadText(s string) error {
	*p = PortText{Text: s}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		p.Unix = path
		return SocketPath(path)
	}
	if name, ok := strings.CutPrefix(s, "fd:"); ok {
		p.FD = name
		if name == "" || strings.ContainsAny(name, ": /") || len(name) > 255 {
			return strict.Faultf("write fd:NAME, with the FileDescriptorName= of the socket unit", "%q names no socket", short(s))
		}
		return nil
	}
	ports := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if err := p.host(s, s[:i]); err != nil {
			return err
		}
		ports = s[i+1:]
	} else {
		p.Bare = true
	}
	return p.numbers(ports)
}

func (p *PortText) host(s, h string) error {
	if h == "" {
		return nil
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(h, "["), "]"))
	switch {
	case h == "*":
		return strict.Faultf("write "+strings.TrimPrefix(s, "*"), "* is no address")
	case h == "localhost":
		return strict.Faultf("write 127.0.0.1 or [::1] instead of localhost", "%q: an address is wanted, not a name", short(s))
	case err != nil:
		return strict.Faultf("write 443, \"8000-8010\", \"127.0.0.1:443\", \"unix:PATH\" or \"fd:NAME\"", "%q is no port or address", short(s))
	case ip.Is6() && !ip.Is4In6() && h[0] != '[':
		return strict.Faultf("write the address in [ ]", "%q: where does the address end and the port begin", short(s))
	}
	p.IP = ip.Unmap()
	return nil
}

func (p *PortText) numbers(s string) (err error) {
	lo, hi, isRange := strings.Cut(s, "-")
	if p.Lo, err = portNumber(strings.TrimSpace(lo)); err != nil {
		return err
	}
	if p.Hi = p.Lo; !isRange {
		return nil
	}
	if p.Hi, err = portNumber(strings.TrimSpace(hi)); err != nil {
		return err
	}
	if p.Hi < p.Lo {
		return strict.Faultf("write \""+strconv.Itoa(int(p.Hi))+"-"+strconv.Itoa(int(p.Lo))+"\"", "the range %s runs backwards", short(s))
	}
	return nil
}

// PortRange is a port, or two with a dash between them.
type PortRange struct{ Lo, Hi uint16 }

// ReadText reads it.
func (p *PortRange) ReadText(s string) error {
	var t PortText
	if err := t.numbers(s); err != nil {
		return err
	}
	*p = PortRange{t.Lo, t.Hi}
	if n := int(t.Hi) - int(t.Lo) + 1; n > maxAppPorts {
		return strict.Faultf("write at most "+strconv.Itoa(maxAppPorts), "%s are %d ports", short(s), n)
	}
	return nil
}

// maxAppPorts bounds the leases, each of which may hold a descriptor.
const maxAppPorts = 4096

// EngineSocket is the path of a unix socket, also written as a unix:// URL.
type EngineSocket string

// ReadText reads it.
func (e *EngineSocket) ReadText(s string) error {
	path := strings.TrimPrefix(s, "unix://")
	*e = EngineSocket(path)
	switch {
	case s == "":
		return nil
	case !strings.HasPrefix(path, "/"):
		return strict.Faultf("write unix:///run/podman/podman.sock", "%q is no absolute path of a unix socket", short(s))
	}
	return SocketPath(path)
}

// Port is a PortText, or an object with a policy of its own.
type Port struct {
	PortObject
	Object bool
}

// ReadNode reads either shape.
func (p *Port) ReadNode(r *strict.Reader, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		r.Read(n, &p.Port)
		return
	}
	p.Object = true
	r.Read(n, &p.PortObject)
	if n.Kind == yaml.MappingNode && p.Port.Text == "" && strict.Find(n, "port") == nil {
		r.Problem(n, "write {port: 443}", "the object names no port")
	}
}

// Hosts are IP addresses: one, or a list.
type Hosts []netip.Addr

// ReadNode reads either shape.
func (h *Hosts) ReadNode(r *strict.Reader, n *yaml.Node) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for i, item := range items {
		r.At(i, func() {
			s, ok := r.Text(item)
			if !ok {
				return
			}
			ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
			if err != nil {
				r.Problem(item, "write an IP address such as 127.0.0.1 or \"::1\"", "%q is no IP address", short(s))
				return
			}
			*h = append(*h, ip.Unmap())
		})
	}
}

// HostPort is HOST:PORT of something to reach.
type HostPort string

// ReadText reads it.
func (h *HostPort) ReadText(s string) error {
	*h = HostPort(s)
	if s == "" {
		return nil
	}
	name, port, err := net.SplitHostPort(s)
	if err != nil {
		return strict.Faultf("write HOST:PORT", "%q has no port", short(s))
	}
	if _, err := portNumber(port); err != nil {
		return err
	}
	var n HostName
	return n.ReadText(name)
}

// ListenAddress is HOST:PORT, or :PORT, to listen on beside the routes.
type ListenAddress string

// ReadText reads it.
func (l *ListenAddress) ReadText(s string) error {
	*l = ListenAddress(s)
	if s == "" {
		return nil
	}
	var p PortText
	if err := p.ReadText(s); err != nil {
		return err
	}
	if p.Bare || p.Unix != "" || p.FD != "" || p.Lo != p.Hi {
		return strict.Faultf("write 127.0.0.1:9000 or :9000", "%q is not HOST:PORT", short(s))
	}
	return nil
}

// PathPattern is a path whose segments are literal, `:name`, or a last `*`.
type PathPattern string

var segmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ReadText reads it.
func (p *PathPattern) ReadText(s string) error {
	*p = PathPattern(s)
	var plain PlainPath
	if err := plain.ReadText(s); err != nil {
		return err
	}
	segments := strings.Split(s, "/")[1:]
	seen := map[string]bool{}
	for i, seg := range segments {
		name, named := strings.CutPrefix(seg, ":")
		switch {
		case strings.Contains(seg, "*") && (seg != "*" || i != len(segments)-1):
			return strict.Faultf("write it as the last segment, such as /v1/*", "%q: a * stands for the rest of a path", short(s))
		case named && !segmentName.MatchString(name):
			return strict.Faultf("write /:id", "%q: the name of a segment has letters and digits", short(s))
		case named && seen[name]:
			return strict.Faultf("give each its own name", "%q names two segments %s", short(s), name)
		case seg == "" && i < len(segments)-1, seg == "." || seg == "..":
			return strict.Faultf("write "+path.Clean(s), "%q is not a clean path, so nothing would match", short(s))
		}
		seen[name] = named
	}
	return nil
}

// PlainPath is the beginning of a path.
type PlainPath string

// ReadText reads it.
func (p *PlainPath) ReadText(s string) error {
	*p = PlainPath(s)
	switch {
	case s == "":
		return nil
	case s[0] != '/':
		return strict.Faultf("write /"+short(s), "%q does not begin with a slash", short(s))
	case strings.ContainsAny(s, "?#"):
		return strict.Faultf("leave out what begins with ? or #; parameters are matched by match.query", "%q is more than a path", short(s))
	case len(s) > 2048:
		return strict.Faultf("write a shorter one", "the path is longer than 2048 bytes")
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return strict.Faultf("leave them out", "the path holds control characters")
		}
	}
	return nil
}

// FileName is a name without a folder.
type FileName string

// ReadText reads it.
func (f *FileName) ReadText(s string) error {
	*f = FileName(s)
	if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\\\x00") {
		return strict.Faultf("write a name such as index.html", "%q is no file name", short(s))
	}
	return nil
}
