package sniff

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Record and message types, and sizes, of RFC 8446 sections 4 and 5.1.
const (
	recordAlert     = 21
	recordHandshake = 22
	recordHeader    = 5
	maxRecord       = 16 << 10
	messageHeader   = 4
	clientHello     = 1
	extServerName   = 0
	extALPN         = 16
	randomAt        = messageHeader + 2
	sessionAt       = randomAt + 32
	maxName         = 255
	maxOffers       = 100 // entries of an ALPN list
)

// A Hello is what routing needs of a ClientHello.
type Hello struct {
	Name   string   // server_name in lower case without trailing dot; "" if there was none
	ALPN   []string // as offered; read only
	Random [32]byte
}

// Alert is a TLS alert description (RFC 8446 section 6).
type Alert uint8

// The alerts connections are refused with.
const (
	UnexpectedMessage Alert = 10
	RecordOverflow    Alert = 22
	HandshakeFailure  Alert = 40
	IllegalParameter  Alert = 47
	AccessDenied      Alert = 49
	DecodeError       Alert = 50
	InternalError     Alert = 80
	UnrecognizedName  Alert = 112
)

// Bytes is the record that ends a handshake fatally, to be sent before the close.
func (a Alert) Bytes() []byte { return []byte{recordAlert, 3, 3, 0, 2, 2, byte(a)} }

var helloErrors = map[Alert]error{
	UnexpectedMessage: errors.New("sniff: tls: first message is not a client hello"),
	RecordOverflow:    errors.New("sniff: tls: client hello too large"),
	IllegalParameter:  errors.New("sniff: tls: server name or protocol list out of bounds"),
	DecodeError:       errors.New("sniff: tls: malformed client hello"),
}

// records finds the end of the first handshake message. It remembers how far it came, so that a hello that comes byte by
// byte is walked once.
type records struct {
	at   int // start of the record not yet walked
	have int // payload bytes of the records before at
	want int // length of the whole message, 0 until its header is known
}

// next looks at all bytes so far. done means that message is the whole hello; a message spread over records is
// gathered in new memory. An alert ends it.
func (r *records) next(b []byte) (message []byte, a Alert, done bool) {
	for {
		if r.want > 0 && r.have >= r.want {
			return gather(b, r.want), 0, true
		}
		if len(b)-r.at < recordHeader {
			return nil, r.early(b[r.at:]), false
		}
		h := b[r.at : r.at+recordHeader]
		n := int(binary.BigEndian.Uint16(h[3:]))
		switch {
		case h[0] != recordHandshake:
			return nil, UnexpectedMessage, false
		case h[1] != 3 || n == 0:
			return nil, DecodeError, false
		case n > maxRecord:
			return nil, RecordOverflow, false
		}
		if r.want == 0 {
			if a := r.length(b[:min(len(b), r.at+recordHeader+n)]); a != 0 {
				return nil, a, false
			}
		}
		if len(b)-r.at < recordHeader+n {
			return nil, 0, false
		}
		r.at += recordHeader + n
		r.have += n
	}
}

// early refuses what the start of a record header already shows.
func (r *records) early(h []byte) Alert {
	if len(h) > 0 && h[0] != recordHandshake {
		return UnexpectedMessage
	}
	if len(h) > 1 && h[1] != 3 {
		return DecodeError
	}
	return 0
}

// length reads the message's own header, wherever the records put its four bytes, as soon as it is there. b ends with a
// record whose header was looked at.
func (r *records) length(b []byte) Alert {
	var head [messageHeader]byte
	got := walk(b, head[:0:messageHeader], messageHeader)
	if len(got) > 0 && got[0] != clientHello {
		return UnexpectedMessage
	}
	if len(got) < messageHeader {
		return 0
	}
	r.want = messageHeader + int(got[1])<<16 + int(got[2])<<8 + int(got[3])
	if r.want > MaxBytes {
		return RecordOverflow
	}
	return 0
}

// gather gives the first n payload bytes, in place when one record holds them.
func gather(b []byte, n int) []byte {
	if int(binary.BigEndian.Uint16(b[3:])) >= n {
		return b[recordHeader : recordHeader+n]
	}
	return walk(b, make([]byte, 0, n), n)
}

// walk appends up to n payload bytes of the records in b, the last of which may be cut.
func walk(b, dst []byte, n int) []byte {
	for len(b) > recordHeader && len(dst) < n {
		size := int(binary.BigEndian.Uint16(b[3:]))
		part := b[recordHeader:min(len(b), recordHeader+size)]
		dst = append(dst, part[:min(len(part), n-len(dst))]...)
		b = b[recordHeader+len(part):]
	}
	return dst
}

// parse reads a whole ClientHello. Of the extensions only the two of interest are looked into; every other may hold what
// it likes as long as the list itself is sound, for what it means is between the client and whoever ends the TLS.
func (h *Hello) parse(m []byte) Alert {
	if len(m) < sessionAt {
		return DecodeError
	}
	copy(h.Random[:], m[randomAt:])
	s := cursor{m[sessionAt:]}
	_, ok1 := s.vector8()
	suites, ok2 := s.vector16()
	_, ok3 := s.vector8()
	if !ok1 || !ok2 || !ok3 || len(suites)%2 != 0 {
		return DecodeError
	}
	if len(s.b) == 0 {
		return 0 // RFC 5246 section 7.4.1.2: extensions may be missing altogether
	}
	list, ok := s.vector16()
	if !ok || len(s.b) != 0 {
		return DecodeError
	}
	return h.extensions(cursor{list})
}

func (h *Hello) extensions(s cursor) Alert {
	named, offered := false, false
	for len(s.b) > 0 {
		kind, ok1 := s.uint16()
		data, ok2 := s.vector16()
		if !ok1 || !ok2 {
			return DecodeError
		}
		var a Alert
		switch kind {
		case extServerName:
			if named {
				return DecodeError // which of the two the target would take is anyone's guess
			}
			named = true
			a = h.serverName(data)
		case extALPN:
			if offered {
				return DecodeError
			}
			offered = true
			a = h.protocols(data)
		}
		if a != 0 {
			return a
		}
	}
	return 0
}

// serverName reads RFC 6066 section 3. Names of other types are passed over, two host names refused.
func (h *Hello) serverName(data []byte) Alert {
	s := cursor{data}
	list, ok := s.vector16()
	if !ok || len(s.b) != 0 || len(list) == 0 {
		return DecodeError
	}
	found := false
	for s = (cursor{list}); len(s.b) > 0; {
		kind, ok1 := s.uint8()
		name, ok2 := s.vector16()
		if !ok1 || !ok2 || len(name) == 0 || kind == 0 && found {
			return DecodeError
		}
		if kind != 0 {
			continue
		}
		found = true
		if h.Name, ok = hostName(name); !ok {
			return IllegalParameter
		}
	}
	return 0
}

// hostName lowers a name and takes one trailing dot off. Only visible ASCII is a name: it ends up in logs and look-ups.
func hostName(name []byte) (string, bool) {
	var low [maxName]byte
	name = bytes.TrimSuffix(name, []byte{'.'})
	if len(name) == 0 || len(name) > maxName || name[len(name)-1] == '.' {
		return "", false
	}
	for i, c := range name {
		if c <= ' ' || c > '~' {
			return "", false
		}
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		low[i] = c
	}
	return string(low[:len(name)]), true
}

// offers are the ALPN lists nearly every client sends, in the bytes they come in, so that they need no memory.
var offers = []struct {
	wire string
	list []string
}{
	{"\x02h2\x08http/1.1", []string{"h2", "http/1.1"}},
	{"\x08http/1.1", []string{"http/1.1"}},
	{"\x02h2", []string{"h2"}},
	{"\x0aacme-tls/1", []string{"acme-tls/1"}},
}

// protocols reads RFC 7301 section 3.1.
func (h *Hello) protocols(data []byte) Alert {
	s := cursor{data}
	list, ok := s.vector16()
	if !ok || len(s.b) != 0 || len(list) == 0 {
		return DecodeError
	}
	for i := range offers {
		if string(list) == offers[i].wire {
			h.ALPN = offers[i].list
			return 0
		}
	}
	for s = (cursor{list}); len(s.b) > 0; {
		name, ok := s.vector8()
		if !ok || len(name) == 0 {
			return DecodeError
		}
		if len(h.ALPN) == maxOffers {
			return IllegalParameter
		}
		h.ALPN = append(h.ALPN, string(name))
	}
	return 0
}

// cursor reads numbers and length-prefixed vectors; what it returns never reaches beyond what it was given.
type cursor struct{ b []byte }

func (s *cursor) uint8() (int, bool) {
	if len(s.b) < 1 {
		return 0, false
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	return v, true
}

func (s *cursor) uint16() (int, bool) {
	if len(s.b) < 2 {
		return 0, false
	}
	v := int(binary.BigEndian.Uint16(s.b))
	s.b = s.b[2:]
	return v, true
}

func (s *cursor) vector8() ([]byte, bool) {
	n, ok := s.uint8()
	return s.take(n, ok)
}

func (s *cursor) vector16() ([]byte, bool) {
	n, ok := s.uint16()
	return s.take(n, ok)
}

func (s *cursor) take(n int, ok bool) ([]byte, bool) {
	if !ok || len(s.b) < n {
		return nil, false
	}
	v := s.b[:n:n]
	s.b = s.b[n:]
	return v, true
}
