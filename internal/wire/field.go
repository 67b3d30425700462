package wire

// kind says what a field means to the connection it came on.
type kind uint8

const (
	plain kind = iota // end to end
	fieldHost
	fieldLength
	fieldCoding
	fieldConnection
	fieldTE
	fieldUpgrade
	fieldExpect
	fieldHop // belongs to the connection, and says nothing to us
)

// kindOf looks at the length first: most names end there.
func kindOf(name []byte) kind {
	switch len(name) {
	case 2:
		if EqualFold(name, "te") {
			return fieldTE
		}
	case 4:
		if EqualFold(name, "host") {
			return fieldHost
		}
	case 6:
		if EqualFold(name, "expect") {
			return fieldExpect
		}
	case 7:
		if EqualFold(name, "upgrade") {
			return fieldUpgrade
		}
	case 10:
		if EqualFold(name, "connection") {
			return fieldConnection
		}
		if EqualFold(name, "keep-alive") {
			return fieldHop
		}
	case 14:
		if EqualFold(name, "content-length") {
			return fieldLength
		}
		if EqualFold(name, "http2-settings") {
			return fieldHop
		}
	case 16:
		if EqualFold(name, "proxy-connection") {
			return fieldHop
		}
	case 17:
		if EqualFold(name, "transfer-encoding") {
			return fieldCoding
		}
	}
	return plain
}

// stays reports whether a field stays even if Connection names it: a client may not strip what we or the target rely on.
func stays(name []byte) bool {
	for _, s := range [...]string{
		"host", "authorization", "cookie", "set-cookie", "via", "forwarded", "x-real-ip", "x-request-id",
	} {
		if EqualFold(name, s) {
			return true
		}
	}
	return hasFold(name, "x-forwarded-") || hasFold(name, "content-")
}

func hasFold(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && EqualFold(b[:len(prefix)], prefix)
}

// fields reads field lines from i to the empty line and returns the place behind it, or ^place when the lines are not
// complete.
func (p *parser) fields(i int) (int, error) {
	b := p.b
	for count := 0; ; count++ {
		end, err := line(b, i)
		if err != nil {
			return 0, err
		}
		if end < 0 {
			return end, nil
		}
		if end == i {
			return i + 2, nil
		}
		if count == p.max {
			return 0, errMany
		}
		colon := i
		for tokenChars[b[colon]] { // ends at the CR at the latest
			colon++
		}
		if b[colon] != ':' || colon == i {
			return 0, nameError(b[i:end], colon-i)
		}
		value := b[colon+1 : end]
		if len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
		if n := len(value); n > 0 && (value[0] <= ' ' || value[n-1] <= ' ') {
			value = trim(value)
		}
		if k := kindOf(b[i:colon]); k == plain {
			p.h.Fields = append(p.h.Fields, Field{b[i:colon:colon], value[:len(value):len(value)]})
		} else if err := p.special(k, Field{b[i:colon], value}); err != nil {
			return 0, err
		}
		i = end + 2
	}
}

// nameError says what is wrong with a line whose name ends at n without a colon.
func nameError(l []byte, n int) error {
	switch {
	case l[0] == ' ' || l[0] == '\t':
		return errFold
	case n > 0 && n < len(l) && (l[n] == ' ' || l[n] == '\t'):
		return errSpaceName
	}
	return errName
}

// special notes a field that is not passed on as it is.
func (p *parser) special(k kind, f Field) error {
	h := p.h
	switch k {
	case fieldLength:
		n, ok := decimal(f.Value)
		if !ok {
			return errLength
		}
		if p.lengths++; p.lengths > 1 {
			return errLengthTwice
		}
		h.Length = n
	case fieldCoding:
		if p.codings++; p.codings > 1 {
			return errCodingTwice
		}
		if !EqualFold(f.Value, "chunked") {
			return errCoding
		}
		h.Chunked = true
	case fieldConnection:
		if p.conns == maxConnection {
			return errConnection
		}
		p.conn[p.conns] = f.Value
		p.conns++
	case fieldUpgrade:
		if p.upgrade == nil {
			p.upgrade = f.Value
		}
	case fieldTE, fieldHost, fieldExpect:
		return p.ofRequest(k, f)
	}
	return nil
}

// ofRequest notes a field that means something in requests alone.
func (p *parser) ofRequest(k kind, f Field) error {
	if !p.request {
		if k != fieldTE {
			p.h.Fields = append(p.h.Fields, f)
		}
		return nil
	}
	switch k {
	case fieldTE:
		for list := f.Value; len(list) > 0; {
			var o []byte
			o, list = nextOption(list)
			p.h.Trailers = p.h.Trailers || EqualFold(o, "trailers")
		}
	case fieldHost:
		if p.hosts++; p.hosts > 1 {
			return errHostTwice
		}
		p.host = f.Value
	case fieldExpect:
		if !EqualFold(f.Value, "100-continue") {
			return errExpect
		}
		p.h.Expect = true
	}
	return nil
}

// Framing is how a body's end is found.
type Framing uint8

// The ways RFC 9112 section 6.3 knows.
const (
	NoBody Framing = iota
	ByLength
	ByChunks
	ByClose
)

// FramingOf says how the body behind h ends, and its length where that is known (-1 where not). h is a request if it
// has no status; method is that of the request a response answers.
func FramingOf(method []byte, h *Head) (Framing, int64) {
	if h.Status != 0 {
		switch {
		case h.Status == 101, h.Status/100 == 2 && string(method) == "CONNECT":
			return ByClose, -1 // a tunnel
		case h.Status < 200, h.Status == 204, h.Status == 304, string(method) == "HEAD":
			return NoBody, 0
		}
	}
	switch {
	case h.Chunked:
		return ByChunks, -1
	case h.Length > 0:
		return ByLength, h.Length
	case h.Length == 0, h.Status == 0:
		return NoBody, 0
	}
	return ByClose, -1
}
