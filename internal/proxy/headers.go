package proxy

import (
	"bytes"
	"net/netip"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// Names and values of fields that are sent often.
var (
	nameForwardedFor    = []byte("X-Forwarded-For")
	nameForwardedProto  = []byte("X-Forwarded-Proto")
	nameForwardedHost   = []byte("X-Forwarded-Host")
	nameForwardedPrefix = []byte("X-Forwarded-Prefix")
	nameRealIP          = []byte("X-Real-IP")
	nameVia             = []byte("Via")
	nameRequestID       = []byte("X-Request-Id")
	nameDate            = []byte("Date")
	nameSetCookie       = []byte("Set-Cookie")
	nameLocation        = []byte("Location")
	nameRetryAfter      = []byte("Retry-After")
	nameRefresh         = []byte("Refresh")
	nameContentType     = []byte("Content-Type")
	nameCacheControl    = []byte("Cache-Control")
	nameNoSniff         = []byte("X-Content-Type-Options")
	nameCSP             = []byte("Content-Security-Policy")

	valueVia     = [...][]byte{[]byte("1.0 quaymaster"), []byte("1.1 quaymaster")}
	valueNoStore = []byte("no-store")
	valueNoSniff = []byte("nosniff")
	valueHTML    = []byte("text/html; charset=utf-8")
	valueText    = []byte("text/plain; charset=utf-8")
	valueProblem = []byte("application/problem+json")
	websocket    = []byte("websocket")
	schemeHTTP   = []byte("http")
	schemeHTTPS  = []byte("https")
)

// maxVia is how many times a request may have passed through programs of our name before it is taken for a loop.
const maxVia = 10

// framing are the fields that frame a message or belong to one connection. No rule may touch them: the writer alone
// says them. In other spellings (Content_Length) they are not let through either.
var framing = []string{
	"connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

// rules are plan.HeaderRules, compiled.
type rules struct {
	remove   []string
	set, add []rule
	host     *template // set: Host, which is no field here
}

type rule struct {
	key   string // for comparisons
	name  []byte
	value template
}

func compileRules(r *plan.HeaderRules) rules {
	var out rules
	for _, name := range r.Remove {
		if ruled(name) {
			out.remove = append(out.remove, name)
		}
	}
	for _, h := range r.Set {
		if strings.EqualFold(h.Name, "Host") {
			tp := compile(h.Value)
			out.host = &tp
		} else if ruled(h.Name) {
			out.set = append(out.set, rule{h.Name, []byte(h.Name), compile(h.Value)})
		}
	}
	for _, h := range r.Add {
		if ruled(h.Name) {
			out.add = append(out.add, rule{h.Name, []byte(h.Name), compile(h.Value)})
		}
	}
	return out
}

// ruled reports whether a rule may name this field.
func ruled(name string) bool {
	for _, f := range framing {
		if strings.EqualFold(name, f) {
			return false
		}
	}
	return isToken(name)
}

// apply changes h as the rules say: remove, set, add.
func (r *rules) apply(h *wire.Head, t *turn) {
	for _, name := range r.remove {
		h.Remove(name)
	}
	for i := range r.set {
		h.Remove(r.set[i].key)
		h.Add(r.set[i].name, r.set[i].value.value(t))
	}
	for i := range r.add {
		h.Add(r.add[i].name, r.add[i].value.value(t))
	}
}

// names are all fields the rules touch.
func (r *rules) names() []string {
	out := append([]string(nil), r.remove...)
	for i := range r.set {
		out = append(out, r.set[i].key)
	}
	for i := range r.add {
		out = append(out, r.add[i].key)
	}
	return out
}

// ours reports whether a request field speaks for us or for a proxy before us: what of it is believed depends on who
// sent it.
func ours(name []byte) bool {
	if len(name) < 9 {
		return false
	}
	switch name[0] | 0x20 {
	case 'f':
		return wire.EqualFold(name, "Forwarded")
	case 'x':
		return wire.EqualFold(name, "X-Real-IP") || wire.EqualFold(name, "X-Request-Id") ||
			len(name) > 12 && wire.EqualFold(name[:12], "X-Forwarded-")
	}
	return false
}

// isAlias reports whether name is, for a target that takes `_` and `.` for `-`, another spelling of a field that we
// set or that frames the message.
func isAlias(name []byte, ruled []string) bool {
	if bytes.IndexByte(name, '_') < 0 && bytes.IndexByte(name, '.') < 0 {
		return false
	}
	if len(name) > 12 && sameName(name[:12], "X-Forwarded-") || sameName(name, "X-Real-IP") || sameName(name, "X-Request-Id") {
		return true
	}
	for _, f := range framing {
		if sameName(name, f) {
			return true
		}
	}
	for _, f := range ruled {
		if sameName(name, f) {
			return true
		}
	}
	return false
}

// sameName compares names without case, taking `_` and `.` for `-`.
func sameName(name []byte, s string) bool {
	if len(name) != len(s) {
		return false
	}
	for i := range name {
		if dashed(name[i]) != dashed(s[i]) {
			return false
		}
	}
	return true
}

func dashed(c byte) byte {
	switch {
	case c == '_' || c == '.':
		return '-'
	case c >= 'A' && c <= 'Z':
		return c | 0x20
	}
	return c
}

// copyFields fills t.out.Fields with what of the request goes on, and with what we say of it.
func (f *forward) copyFields(t *turn) {
	req, out := &t.ex.Req, &t.out
	for i := range req.Fields {
		name := req.Fields[i].Name
		if ours(name) {
			if t.trusted && !wire.EqualFold(name, "X-Real-IP") && !replaced(name) {
				out.Fields = append(out.Fields, req.Fields[i])
			}
			continue
		}
		if isAlias(name, f.ruled) && !f.wanted(name) {
			continue
		}
		out.Fields = append(out.Fields, req.Fields[i])
	}
	if chain := t.forwardedFor(); len(chain) > 0 {
		out.Add(nameForwardedFor, chain)
	}
	if len(t.clientText) > 0 {
		out.Add(nameRealIP, t.clientText)
	}
	out.Add(nameForwardedProto, t.believed("X-Forwarded-Proto", schemeOf(t.ex)))
	out.Add(nameForwardedHost, t.believed("X-Forwarded-Host", req.Authority))
	out.Add(nameRequestID, t.ex.Log.ID)
	out.Add(nameVia, valueVia[min(req.Minor, 1)])
	if len(f.prefix) > 0 {
		out.Set(nameForwardedPrefix, t.believed("X-Forwarded-Prefix", nil))
		last := &out.Fields[len(out.Fields)-1]
		n := len(t.ex.Scratch)
		t.ex.Scratch = append(append(t.ex.Scratch, last.Value...), f.prefix...)
		last.Value = t.ex.Scratch[n:len(t.ex.Scratch):len(t.ex.Scratch)]
	}
	f.request.apply(out, t)
}

// replaced are the fields that are said anew, with the value of a trusted proxy where there is one.
func replaced(name []byte) bool {
	return wire.EqualFold(name, "X-Forwarded-For") || wire.EqualFold(name, "X-Forwarded-Proto") ||
		wire.EqualFold(name, "X-Forwarded-Host") || wire.EqualFold(name, "X-Request-Id")
}

// wanted reports whether a rule sets exactly this spelling, in which case the rule itself decides.
func (f *forward) wanted(name []byte) bool {
	for _, s := range f.ruled {
		if wire.EqualFold(name, s) {
			return true
		}
	}
	return false
}

// believed is the field as a trusted proxy said it, else the value we know ourselves.
func (t *turn) believed(name string, own []byte) []byte {
	if t.trusted {
		if v, ok := t.ex.Req.Field(name); ok && len(v) > 0 {
			return v
		}
	}
	return own
}

// forwardedFor is the chain of addresses up to our peer.
func (t *turn) forwardedFor() []byte {
	peer := t.ex.Conn.ClientText
	if !t.trusted {
		return peer
	}
	n := len(t.ex.Scratch)
	for i := range t.ex.Req.Fields {
		f := &t.ex.Req.Fields[i]
		if !wire.EqualFold(f.Name, "X-Forwarded-For") || len(f.Value) == 0 {
			continue
		}
		t.ex.Scratch = append(append(t.ex.Scratch, f.Value...), ", "...)
	}
	t.ex.Scratch = append(t.ex.Scratch, peer...)
	return t.ex.Scratch[n:len(t.ex.Scratch):len(t.ex.Scratch)]
}

// ForwardedClient is the client's address as a trusted peer tells it: the right-most X-Forwarded-For entry that is not
// itself trusted, or peer where there is none. An entry that is no address ends the search: what stands left of it
// cannot be believed.
func ForwardedClient(h *wire.Head, peer netip.Addr, trusted []netip.Prefix) netip.Addr {
	best := peer
	for i := len(h.Fields) - 1; i >= 0; i-- {
		if !wire.EqualFold(h.Fields[i].Name, "X-Forwarded-For") {
			continue
		}
		for v := h.Fields[i].Value; len(v) > 0; {
			entry := v
			if c := bytes.LastIndexByte(v, ','); c >= 0 {
				entry, v = v[c+1:], v[:c]
			} else {
				v = nil
			}
			a, ok := parseAddr(bytes.Trim(entry, " \t"))
			if !ok {
				return best
			}
			best = a
			if !contains(trusted, a) {
				return a
			}
		}
	}
	return best
}

// parseAddr reads an address with or without a port, brackets and zone.
func parseAddr(b []byte) (netip.Addr, bool) {
	if len(b) == 0 || len(b) > 64 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	if err != nil {
		ap, perr := netip.ParseAddrPort(string(b))
		if perr != nil {
			a, err = netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(string(b), "["), "]"))
			if err != nil {
				return netip.Addr{}, false
			}
			return a.Unmap().WithZone(""), true
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone(""), true
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// passes counts how often a request has gone through programs of our name, by its Via fields.
func passes(h *wire.Head) int {
	n := 0
	for i := range h.Fields {
		if wire.EqualFold(h.Fields[i].Name, "Via") {
			n += bytes.Count(h.Fields[i].Value, valueVia[1][4:])
		}
	}
	return n
}

// cookie finds the value of a request cookie, nil if there is none.
func cookie(h *wire.Head, name string) []byte {
	for i := range h.Fields {
		if !wire.EqualFold(h.Fields[i].Name, "Cookie") {
			continue
		}
		for v := h.Fields[i].Value; len(v) > 0; {
			var pair []byte
			pair, v, _ = bytes.Cut(v, []byte{';'})
			k, val, ok := bytes.Cut(bytes.Trim(pair, " \t"), []byte{'='})
			if ok && string(k) == name {
				return val
			}
		}
	}
	return nil
}

func schemeOf(ex *wire.Exchange) []byte {
	switch {
	case len(ex.Req.Scheme) > 0:
		return ex.Req.Scheme
	case ex.Conn.TLS != nil:
		return schemeHTTPS
	}
	return schemeHTTP
}

// bodyless reports whether an answer has no body whatever its head says (RFC 9112 section 6.3).
func bodyless(method []byte, status int) bool {
	return string(method) == "HEAD" || status < 200 || status == 204 || status == 304
}
