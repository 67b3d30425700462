package form

import (
	"math"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// short keeps what a person wrote short enough for an error line.
func short(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}

// Duration is a time span: `10s`, `5m`, `1h30m`, `500ms`, or a bare number of seconds. At most ten years.
type Duration time.Duration

// ReadText reads it.
func (d *Duration) ReadText(s string) error {
	const most = 10 * 365 * 24 * time.Hour
	v, err := time.ParseDuration(s)
	if f, ferr := strconv.ParseFloat(s, 64); ferr == nil && !math.IsNaN(f) && math.Abs(f) < most.Seconds() {
		v, err = time.Duration(f*float64(time.Second)), nil
	}
	switch {
	case err != nil:
		return strict.Faultf("write 10s, 5m, 500ms or a number of seconds", "%q is no duration", short(s))
	case v < 0:
		return strict.Faultf("write a positive one, or 0", "%s is negative", short(s))
	case v > most:
		return strict.Faultf("write a shorter one", "%s is longer than ten years", short(s))
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes: `64KiB`, `10MiB`, `1GiB`, `10MB`, or bare bytes.
type Size int64

var units = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"B", 1},
	{"", 1},
}

// ReadText reads it.
func (z *Size) ReadText(s string) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || math.IsNaN(f) || f < 0 || f*u.bytes > 1<<50 || strings.ContainsAny(digits, "xXpPeE_+") {
			break
		}
		*z = Size(f * u.bytes)
		return nil
	}
	return strict.Faultf("write 64KiB, 10MiB or a number of bytes", "%q is no size", short(s))
}

// Percent is a share: `20%`.
type Percent float64

// ReadText reads it.
func (p *Percent) ReadText(s string) error {
	digits, ok := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(f >= 0 && f <= 100) {
		return strict.Faultf("write a share from 0% to 100%, such as 20%", "%q is no share", short(s))
	}
	*p = Percent(f / 100)
	return nil
}

// Name is a DNS label: lower-case letters, digits and inner hyphens, at most 63.
type Name string

// ReadText reads it.
func (n *Name) ReadText(s string) error {
	*n = Name(s)
	if !label(s, false) {
		return strict.Faultf("write lower-case letters, digits and inner hyphens, at most 63", "%q is no name", short(s))
	}
	return nil
}

func label(s string, underscore bool) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || underscore && c == '_') {
			return false
		}
	}
	return true
}

// host reports whether s, lower case, is a DNS name.
func host(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !label(part, true) {
			return false
		}
	}
	return true
}

// HostName is a DNS name or an IP address.
type HostName string

// ReadText reads it.
func (h *HostName) ReadText(s string) error {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		*h = HostName(ip.Unmap().String())
		return nil
	}
	*h = HostName(s)
	if !host(strings.ToLower(strings.TrimSuffix(s, "."))) {
		return strict.Faultf("write a name such as db.internal, or an IP address", "%q is no host", short(s))
	}
	return nil
}

// Domain is what a route's domains and a site's name may be.
type Domain string

// ReadText reads it.
func (d *Domain) ReadText(s string) error {
	text := strings.ToLower(strings.TrimSuffix(s, "."))
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		*d = Domain(ip.Unmap().String())
		return nil
	}
	*d = Domain(text)
	name := text
	if rest, ok := strings.CutPrefix(text, "**."); ok {
		name = rest
	} else if rest, ok := strings.CutPrefix(text, "*."); ok {
		name = rest
	}
	switch {
	case text == "*" || text == "**":
		return strict.Faultf("leave domains out", "%q is no domain: a route without domains matches any name", s)
	case strings.Contains(text, "://"):
		return strict.Faultf("write the name alone", "%q is a URL", short(s))
	case strings.Contains(text, "/"):
		return strict.Faultf("write the name here, and the path under match.path", "%q has a path", short(s))
	case strings.Contains(name, ":"):
		return strict.Faultf("write the name here, and the port under match.ports", "%q has a port", short(s))
	case strings.Contains(name, "*"):
		return strict.Faultf("write *.example.com or **.example.com", "%q has its * at a place that means nothing", short(s))
	case !ascii(name):
		return strict.Faultf("write its xn-- form", "%q has letters that DNS names do not have", short(s))
	case !host(name):
		return strict.Faultf("write a name such as app.example.com", "%q is no domain", short(s))
	}
	return nil
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// AllowName is an entry of the allowlist: a name, `*.d` or `*`. A port is ignored.
type AllowName string

// ReadText reads it.
func (a *AllowName) ReadText(s string) error {
	text := s
	if h, _, err := net.SplitHostPort(s); err == nil {
		text = h
	}
	var d Domain
	if text == "*" {
		*a = "*"
		return nil
	}
	if strings.HasPrefix(text, "**") {
		return strict.Faultf("write *.d: in the allowlist it stands for d and everything below", "%q is not understood here", short(s))
	}
	err := d.ReadText(text)
	*a = AllowName(d)
	return err
}

// Network is a CIDR or a single IP address.
type Network netip.Prefix

// ReadText reads it.
func (n *Network) ReadText(s string) error {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		*n = Network(netip.PrefixFrom(ip, ip.BitLen()))
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return strict.Faultf("write 10.0.0.0/8, 2001:db8::/32 or a single address", "%q is no network", short(s))
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	*n = Network(p.Masked())
	return nil
}

// Method is an HTTP method in capitals.
type Method string

// ReadText reads it.
func (m *Method) ReadText(s string) error {
	*m = Method(s)
	if up := strings.ToUpper(s); up != s && isToken(s) {
		return strict.Faultf("write "+up, "method %s is not in capitals, and case counts", short(s))
	}
	if !isToken(s) || len(s) > 32 {
		return strict.Faultf("write GET, POST or another one", "%q is no method", short(s))
	}
	return nil
}

// Token is a name as HTTP knows it: a header field, a cookie.
type Token string

// ReadText reads it.
func (t *Token) ReadText(s string) error {
	*t = Token(s)
	if !isToken(s) {
		return strict.Faultf("write letters, digits and hyphens", "%q is no name of a field or cookie", short(s))
	}
	return nil
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// HeaderValue is the value of a field, which may hold placeholders.
type HeaderValue string

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// Placeholders are the words that may stand in braces.
var Placeholders = []string{"client_ip", "host", "path", "query", "request_id", "route", "scheme"}

// ReadText reads it.
func (v *HeaderValue) ReadText(s string) error {
	*v = HeaderValue(s)
	for i := range len(s) {
		if s[i] < 0x20 && s[i] != '\t' || s[i] == 0x7f {
			return strict.Faultf("write it on one line", "a header value cannot hold control characters")
		}
	}
	if len(s) > 8<<10 {
		return strict.Faultf("write a shorter one", "the value is longer than 8KiB")
	}
	for _, p := range placeholder.FindAllString(s, -1) {
		word := p[1 : len(p)-1]
		if !oneOf(word, Placeholders) {
			remedy := "the placeholders are {" + strings.Join(Placeholders, "} {") + "}"
			if near := strict.Nearest(word, Placeholders); near != "" {
				remedy = "write {" + near + "}"
			}
			return strict.Faultf(remedy, "there is no placeholder %s", p)
		}
	}
	return nil
}

func oneOf(s string, words []string) bool {
	for _, w := range words {
		if w == s {
			return true
		}
	}
	return false
}

// Mode is octal text.
type Mode string

// ReadText reads it.
func (m *Mode) ReadText(s string) error {
	*m = Mode(s)
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil || v > 0o777 || len(s) < 3 {
		return strict.Faultf(`write "0600" or "0660"`, "%q is no file mode", short(s))
	}
	if v&0o007 != 0 {
		return strict.Faultf(`write "0660" and a group`, "mode %s lets every user of this machine in", s)
	}
	return nil
}

// span writes a duration the short way.
func span(d Duration) string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	if d == 0 {
		return "0"
	}
	return s
}
