package wire

// A ParseError refuses a message. Status is what a server answers: 400, 408, 414, 417, 431, 501 or 505.
type ParseError struct {
	Status int
	What   string // lower case, constant, safe to show
}

func (e *ParseError) Error() string { return e.What }

func refuse(status int, what string) *ParseError { return &ParseError{status, what} }

var (
	errBareLF        = refuse(400, "line ends without a carriage return")
	errBareCR        = refuse(400, "carriage return inside a line")
	errControl       = refuse(400, "control character in the head")
	errStartLine     = refuse(400, "malformed request line")
	errStatusLine    = refuse(400, "malformed status line")
	errMethod        = refuse(501, "unknown method")
	errVersion       = refuse(505, "unsupported HTTP version")
	errTarget        = refuse(400, "malformed request target")
	errAuthority     = refuse(400, "malformed host")
	errHostMissing   = refuse(400, "no host field")
	errHostTwice     = refuse(400, "more than one host field")
	errHostDiffers   = refuse(400, "host field differs from the request target")
	errFold          = refuse(400, "folded field line")
	errSpaceName     = refuse(400, "space before the colon of a field")
	errName          = refuse(400, "malformed field name")
	errMany          = refuse(431, "too many fields")
	errLength        = refuse(400, "malformed content-length")
	errLengthTwice   = refuse(400, "more than one content-length field")
	errCoding        = refuse(501, "unsupported transfer-encoding")
	errCodingTwice   = refuse(400, "more than one transfer-encoding field")
	errCodingLength  = refuse(400, "both transfer-encoding and content-length")
	errCodingMinor   = refuse(400, "transfer-encoding in HTTP/1.0")
	errCodingInterim = refuse(400, "body announced for an interim response")
	errConnection    = refuse(400, "malformed connection field")
	errExpect        = refuse(417, "unknown expectation")
)

const (
	maxMethod     = 32
	maxConnection = 4  // Connection fields
	maxNamed      = 32 // options of Connection that name fields
)

var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
	slash       = []byte("/")
	asterisk    = []byte("*")
)

// ParseRequest reads a request head from the start of b into h (RFC 9112 sections 2-6, strictly). It returns the bytes
// it took, or 0 when the head is not complete yet; from tells where the last call stopped looking (0 at first) and
// next is what to pass then. maxFields bounds the number of fields. What h holds is only valid with n > 0, and points
// into b. Every complete line is judged at once; one empty line before the request is skipped (section 2.2).
func ParseRequest(b []byte, from int, h *Head, maxFields int) (n, next int, err error) {
	if i := resume(b, from); i > 0 {
		return 0, i, nil
	}
	h.Reset()
	p := parser{b: b, h: h, request: true, max: maxFields}
	i := 0
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		i = 2
	}
	end, err := line(b, i)
	if err != nil {
		return 0, 0, err
	}
	if end < 0 {
		return 0, ^end, nil
	}
	if err := p.requestLine(b[i:end]); err != nil {
		return 0, 0, err
	}
	if i, err = p.fields(end + 2); err != nil {
		return 0, 0, err
	}
	if i < 0 {
		return 0, ^i, nil
	}
	if err := p.finishRequest(); err != nil {
		return 0, 0, err
	}
	return i, 0, nil
}

// ParseResponse is the same for a response. Interim responses (1xx) are messages of their own.
func ParseResponse(b []byte, from int, h *Head, maxFields int) (n, next int, err error) {
	if i := resume(b, from); i > 0 {
		return 0, i, nil
	}
	h.Reset()
	p := parser{b: b, h: h, max: maxFields}
	end, err := line(b, 0)
	if err != nil {
		return 0, 0, err
	}
	if end < 0 {
		return 0, ^end, nil
	}
	if err := p.statusLine(b[:end]); err != nil {
		return 0, 0, err
	}
	i, err := p.fields(end + 2)
	if err != nil {
		return 0, 0, err
	}
	if i < 0 {
		return 0, ^i, nil
	}
	if err := p.finishResponse(); err != nil {
		return 0, 0, err
	}
	return i, 0, nil
}

// resume spares a call that brought no end of a line the work of all calls before it. It is 0 when there is something
// to judge.
func resume(b []byte, from int) int {
	if from <= 0 || from > len(b) {
		return 0
	}
	i := control(b, from)
	if i == len(b) || i == len(b)-1 && b[i] == '\r' {
		return i
	}
	return 0
}

// parser reads one head.
type parser struct {
	b       []byte
	h       *Head
	request bool
	max     int

	host            []byte
	hosts           int
	lengths         int
	codings         int
	upgrade         []byte
	conns           int
	conn            [maxConnection][]byte // the values of Connection
	absolute        bool                  // the target named the host
	authorityTarget []byte
}

// requestLine takes "METHOD SP target SP HTTP/1.x" apart.
func (p *parser) requestLine(l []byte) error {
	h := p.h
	i := 0
	for i < len(l) && tokenChars[l[i]] {
		i++
	}
	if i == 0 || i == len(l) || l[i] != ' ' {
		return errStartLine
	}
	h.Method = l[:i]
	rest := l[i+1:]
	i = 0
	for i < len(rest) && rest[i] > ' ' {
		i++
	}
	if i == 0 {
		return errStartLine
	}
	h.Target = rest[:i]
	if i == len(rest) {
		return errVersion // HTTP/0.9
	}
	version := rest[i:]
	switch {
	case rest[i] != ' ':
		return errStartLine
	case string(version) == " HTTP/1.1":
		h.Minor = 1
	case string(version) == " HTTP/1.0":
	case len(version) == 9 && string(version[:6]) == " HTTP/" && isDigit(version[6]) && version[7] == '.' && isDigit(version[8]):
		return errVersion
	default:
		return errStartLine
	}
	if len(h.Method) > maxMethod {
		return errMethod
	}
	for _, x := range h.Method {
		if x >= 'a' && x <= 'z' {
			return errMethod // methods have case, and readings of "get" differ
		}
	}
	return p.target()
}

func isDigit(x byte) bool { return x >= '0' && x <= '9' }

// target brings the four forms of RFC 9112 section 3.2 to one.
func (p *parser) target() error {
	h, t := p.h, p.h.Target
	for _, x := range t {
		if x == '#' || x == 0x7f {
			return errTarget
		}
	}
	switch {
	case string(h.Method) == "CONNECT":
		p.absolute, p.authorityTarget = true, t
		return nil
	case t[0] == '/':
		return nil
	case string(t) == "*":
		if string(h.Method) != "OPTIONS" {
			return errTarget
		}
		return nil
	case len(t) > 7 && EqualFold(t[:7], "http://"):
		h.Scheme, t = schemeHTTP, t[7:]
	case len(t) > 8 && EqualFold(t[:8], "https://"):
		h.Scheme, t = schemeHTTPS, t[8:]
	default:
		return errTarget
	}
	p.absolute = true
	for i, x := range t {
		switch x {
		case '/':
			p.authorityTarget, h.Target = t[:i], t[i:]
			return nil
		case '?':
			return errTarget // no path: "/?..." is meant, but cannot be said in place
		}
	}
	p.authorityTarget, h.Target = t, slash
	if string(h.Method) == "OPTIONS" {
		h.Target = asterisk
	}
	return nil
}

// statusLine takes "HTTP/1.x SP 3DIGIT [SP reason]" apart.
func (p *parser) statusLine(l []byte) error {
	if len(l) < 12 || string(l[:7]) != "HTTP/1." || l[8] != ' ' {
		return errStatusLine
	}
	switch l[7] {
	case '1':
		p.h.Minor = 1
	case '0':
	default:
		return errVersion
	}
	n, ok := decimal(l[9:12])
	if !ok || n < 100 {
		return errStatusLine
	}
	p.h.Status = int(n)
	if len(l) > 12 {
		if l[12] != ' ' {
			return errStatusLine
		}
		p.h.Reason = l[13:]
	}
	return nil
}

// finishRequest judges the head as a whole.
func (p *parser) finishRequest() error {
	h := p.h
	if err := p.finish(); err != nil {
		return err
	}
	h.Expect = h.Expect && h.Minor > 0 && (h.Chunked || h.Length > 0)
	if p.hosts == 0 {
		if h.Minor > 0 {
			return errHostMissing
		}
		p.host = p.authorityTarget
		if !p.absolute {
			return nil // HTTP/1.0 may say nothing
		}
	}
	if !validAuthority(p.host) {
		return errAuthority
	}
	if p.absolute && !equalFoldBytes(p.host, p.authorityTarget) {
		return errHostDiffers
	}
	h.Authority = p.host
	return nil
}

// finishResponse judges the head as a whole.
func (p *parser) finishResponse() error {
	h := p.h
	if err := p.finish(); err != nil {
		return err
	}
	if h.Chunked || h.Length > 0 {
		switch {
		case h.Status < 200:
			return errCodingInterim
		case h.Status == 204:
			h.Close = true // whatever follows is not the next response
		}
	}
	return nil
}

// finish is what requests and responses share: framing, and what Connection says.
func (p *parser) finish() error {
	h := p.h
	if h.Chunked {
		if h.Length >= 0 {
			return errCodingLength
		}
		if h.Minor == 0 {
			return errCodingMinor
		}
	}
	return p.connection()
}

// connection acts on the options of Connection.
func (p *parser) connection() error {
	h := p.h
	var closing, keep, upgrade bool
	named := 0
	for _, list := range p.conn[:p.conns] {
		for len(list) > 0 {
			var o []byte
			o, list = nextOption(list)
			switch {
			case len(o) == 0:
			case EqualFold(o, "keep-alive"):
				keep = true
			case EqualFold(o, "close"):
				closing = true
			case EqualFold(o, "upgrade"):
				upgrade = true
			case !isToken(o):
				if p.request {
					return errConnection
				}
			case kindOf(o) == plain && !stays(o):
				if named++; named > maxNamed {
					return errConnection
				}
				h.remove(o)
			}
		}
	}
	h.Close = closing || h.Minor == 0 && !keep
	if upgrade && h.Minor > 0 && len(p.upgrade) > 0 {
		h.Upgrade = p.upgrade
	}
	return nil
}

// remove takes out every field of that name.
func (h *Head) remove(name []byte) {
	out := h.Fields[:0]
	for _, f := range h.Fields {
		if !equalFoldBytes(f.Name, name) {
			out = append(out, f)
		}
	}
	h.Fields = out
}

// validAuthority reports whether b is host [":" port] with a name, an IPv4 or a bracketed IPv6 address. Percent
// encoding, user names and lists have more than one reading.
func validAuthority(b []byte) bool {
	i, set := 0, &hostChars
	if len(b) > 0 && b[0] == '[' {
		i, set = 1, &v6Chars
	}
	start := i
	for i < len(b) && set[b[i]] {
		i++
	}
	if i == start {
		return false
	}
	if set == &v6Chars {
		if i == len(b) || b[i] != ']' {
			return false
		}
		i++
	}
	if i == len(b) {
		return true
	}
	if b[i] != ':' {
		return false
	}
	if i++; i == len(b) {
		return true
	}
	port, ok := decimal(b[i:])
	return ok && len(b)-i <= 5 && port <= 65535
}
