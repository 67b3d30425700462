package form

import (
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// Target is one place to open connections to: `HOST:PORT`, `https://HOST:PORT`, `unix:PATH`, or an object.
type Target struct {
	TargetObject
	Text string // as written: the metric label
	Unix string
	App  Name
}

// TargetObject is a target with its share.
type TargetObject struct {
	// Name or IP address.
	Host HostName `yaml:"host"`
	// A number, or `preserve`: the port the client came to.
	Port TargetPort `yaml:"port"`
	// Its share beside the others.
	Weight int `yaml:"weight" range:"1..10000"`
	// Connections at once. 0 is no limit.
	MaxConnections int `yaml:"max_connections" range:"0..1000000"`
	// Reach it by TLS, as `https://` does.
	TLS bool `yaml:"tls"`
}

// TargetPort is a number or `preserve`.
type TargetPort struct {
	Number   uint16
	Preserve bool
}

// ReadText reads it.
func (p *TargetPort) ReadText(s string) (err error) {
	if s == "preserve" {
		p.Preserve = true
		return nil
	}
	p.Number, err = portNumber(s)
	return err
}

// ReadNode reads either shape.
func (t *Target) ReadNode(r *strict.Reader, n *yaml.Node) {
	t.Weight = 1
	if n.Kind == yaml.ScalarNode {
		if s, ok := r.Text(n); ok {
			r.Fault(n, t.ReadText(s, r.Later))
		}
		return
	}
	before := len(r.Problems)
	r.Read(n, &t.TargetObject)
	if n.Kind != yaml.MappingNode || len(r.Problems) > before {
		return
	}
	switch {
	case t.Host == "":
		r.Problem(n, "write {host: 10.0.0.5, port: 8080}", "the target has no host")
	case t.Port == TargetPort{}:
		r.Problem(n, "write port: 8080, or port: preserve", "the target has no port")
	}
	t.Text = net.JoinHostPort(string(t.Host), "preserve")
	if !t.Port.Preserve {
		t.Text = net.JoinHostPort(string(t.Host), strconv.Itoa(int(t.Port.Number)))
	}
	if t.TLS {
		t.Text = "https://" + t.Text
	}
}

// ReadText reads the short form. later knows which schemes are not in this version.
func (t *Target) ReadText(s string, later func(owner, key string) bool) error {
	t.Text, t.Weight = s, 1
	scheme, rest, has := strings.Cut(s, ":")
	switch {
	case has && later != nil && later("Target", scheme):
		return strict.Faultf("write HOST:PORT", "%s: targets are not in this version", scheme)
	case has && strings.HasPrefix(rest, "//") && scheme == "http":
		return strict.Faultf("write "+strings.TrimSuffix(rest[2:], "/"), "%q: a target is written without http://", short(s))
	case has && strings.HasPrefix(rest, "//") && scheme == "https":
		if s, t.TLS = rest[2:], true; strings.ContainsAny(s, "/?#@") {
			return strict.Faultf("write https://HOST:PORT; paths are for rewrite", "%q is more than a host and a port", short(t.Text))
		}
		var bare HostName
		if err := bare.ReadText(s); err == nil {
			s = net.JoinHostPort(string(bare), "443")
		}
	case has && strings.HasPrefix(rest, "//"):
		return strict.Faultf("write HOST:PORT or https://HOST:PORT", "%q: there is no scheme %s", short(s), scheme)
	case has && scheme == "app":
		return t.App.ReadText(rest)
	case has && scheme == "unix":
		t.Unix = rest
		return SocketPath(rest)
	}
	h, port, err := net.SplitHostPort(s)
	switch {
	case err != nil || port == "":
		if _, err := portNumber(s); err == nil {
			return strict.Faultf("write localhost:"+s, "target %s has no host", s)
		}
		return strict.Faultf("write HOST:PORT", "target %q has no port", short(s))
	case h == "":
		return strict.Faultf("write localhost"+s, "target %q has no host", short(s))
	}
	if err := t.Host.ReadText(h); err != nil {
		return err
	}
	return t.Port.ReadText(port)
}

// Want is a value that a field or parameter must have, or an expression that it must match.
type Want struct {
	Value string
	Regex string
}

// WantObject is the long form.
type WantObject struct {
	// A regular expression (RE2), found anywhere in the value.
	Regex string `yaml:"regex"`
}

// ReadNode reads either shape.
func (w *Want) ReadNode(r *strict.Reader, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		w.Value, _ = r.Text(n)
		return
	}
	var o WantObject
	r.Read(n, &o)
	w.Regex = o.Regex
	if n.Kind != yaml.MappingNode {
		return
	}
	switch _, err := regexp.Compile(o.Regex); {
	case o.Regex == "":
		r.Problem(n, "write {regex: \"curl/.*\"} or a plain value", "there is no expression")
	case len(o.Regex) > 1000:
		r.Problem(n, "write a shorter one", "the expression is longer than 1000 bytes")
	case err != nil:
		r.Problem(n, "write it in RE2 syntax (no look-around, no back-references)", "the expression cannot be read: %s", short(err.Error()))
	}
}

// Site is the value of a site. It becomes an action.
type Site struct{ Action }

// ReadNode reads each shape.
func (s *Site) ReadNode(r *strict.Reader, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		r.Read(n, &s.Action)
	case yaml.SequenceNode:
		s.Targets = make([]Target, len(n.Content))
		for i, item := range n.Content {
			r.At(i, func() { s.target(r, item, &s.Targets[i]) })
		}
	default:
		text, ok := r.Text(n)
		if !ok {
			return
		}
		if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "/") {
			s.Files = &Files{Root: text}
			s.Files.Defaults()
			return
		}
		s.Targets = make([]Target, 1)
		s.target(r, n, &s.Targets[0])
	}
}

// target reads one target of a site, which may also be a bare port of this host.
func (s *Site) target(r *strict.Reader, n *yaml.Node, t *Target) {
	if n.Kind == yaml.ScalarNode {
		if text, ok := r.Text(n); !ok {
			return
		} else if port, err := strconv.ParseUint(text, 10, 63); err == nil {
			t.Text, t.Weight, t.Host = "localhost:"+text, 1, "localhost"
			t.Port.Number, err = portNumber(strconv.FormatUint(port, 10))
			r.Fault(n, err)
			return
		}
	}
	t.ReadNode(r, n)
}

// StatusRange is one status, or a range of them.
type StatusRange struct{ Min, Max int }

// ReadText reads it.
func (s *StatusRange) ReadText(text string) error {
	lo, hi, isRange := strings.Cut(text, "-")
	if !isRange {
		hi = lo
	}
	low, err1 := strconv.Atoi(lo)
	high, err2 := strconv.Atoi(hi)
	if err1 != nil || err2 != nil || low < 100 || high > 599 || high < low {
		return strict.Faultf("write 200 or \"200-399\"", "%q is no range of statuses", short(text))
	}
	*s = StatusRange{low, high}
	return nil
}

// RetryCause is `connect` or a status.
type RetryCause struct {
	Connect bool
	Status  int
}

// ReadText reads it.
func (c *RetryCause) ReadText(s string) error {
	if s == "connect" {
		c.Connect = true
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 500 || n > 599 {
		return strict.Faultf("write connect, 502, 503 or another status from 500 to 599", "%q is nothing that is tried again", short(s))
	}
	c.Status = n
	return nil
}

// RedirectTo is `https` or a URL with placeholders.
type RedirectTo string

var inRedirect = []string{"host", "path", "query"}

// ReadText reads it.
func (t *RedirectTo) ReadText(s string) error {
	*t = RedirectTo(s)
	if s == "https" {
		return nil
	}
	for _, p := range placeholder.FindAllString(s, -1) {
		if word := p[1 : len(p)-1]; !oneOf(word, inRedirect) {
			return strict.Faultf("the placeholders of a redirect are {host} {path} {query}", "there is no placeholder %s here", p)
		}
	}
	u, err := url.Parse(strings.NewReplacer("{host}", "x", "{path}", "/x", "{query}", "x=y").Replace(s))
	if err != nil || (u.Host != "" && u.Scheme != "http" && u.Scheme != "https") || (u.Host == "" && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "{path}")) || strings.ContainsAny(s, "\r\n\t ") {
		return strict.Faultf("write https, or https://{host}{path}, or a path", "%q is no place to redirect to", short(s))
	}
	return nil
}

// RateKey is what a rate limit counts by.
type RateKey string

// ReadText reads it.
func (k *RateKey) ReadText(s string) error {
	*k = RateKey(s)
	name, header := strings.CutPrefix(s, "header:")
	if s == "client_ip" || s == "route" || header && isToken(name) {
		return nil
	}
	return strict.Faultf("write client_ip, header:NAME or route", "%q is nothing to count by", short(s))
}
