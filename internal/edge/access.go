package edge

import (
	"bytes"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// accessLog writes one line for each exchange and tunnel.
type accessLog struct {
	out   io.Writer // takes whole lines; must not wait for a slow reader
	lines sync.Pool // of *[]byte
	n     atomic.Uint64
}

// entry is what a line tells.
type entry struct {
	start  time.Time
	took   time.Duration
	client netip.Addr
	kind   string // "http" or "tunnel"
	proto  string
	tls    string // version of the TLS that ended here
	method []byte
	host   []byte
	target []byte
	agent  []byte
	*wire.Record
}

// write formats e as the settings say. A sample of n keeps one line in n, and every failure.
func (l *accessLog) write(s *plan.AccessLog, e *entry) {
	if !s.Enabled || l.out == nil {
		return
	}
	if s.Sample > 1 && e.Status < 500 && e.Reason == "" && l.n.Add(1)%uint64(s.Sample) != 0 {
		return
	}
	p, _ := l.lines.Get().(*[]byte)
	if p == nil {
		b := make([]byte, 0, 1024)
		p = &b
	}
	if s.Format == "text" {
		*p = e.appendText((*p)[:0])
	} else {
		*p = e.appendJSON((*p)[:0])
	}
	_, _ = l.out.Write(*p) // the writer counts what it has to drop
	if cap(*p) <= 16<<10 {
		l.lines.Put(p)
	}
}

func (e *entry) appendJSON(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = e.start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","kind":"`...)
	b = append(b, e.kind...)
	b = append(b, `","route":`...)
	b = appendQuoted(b, e.Route)
	b = append(b, `,"client":"`...)
	b = e.client.AppendTo(b)
	b = append(b, `","host":`...)
	b = appendQuotedBytes(b, e.host)
	if e.kind == "http" {
		b = append(b, `,"method":`...)
		b = appendQuotedBytes(b, e.method)
		b = append(b, `,"path":`...)
		b = appendTarget(b, e.target)
		b = append(b, `,"proto":"`...)
		b = append(b, e.proto...)
		if e.tls != "" {
			b = append(b, `","tls":"`...)
			b = append(b, e.tls...)
		}
		b = append(b, `","status":`...)
		b = strconv.AppendInt(b, int64(e.Status), 10)
		b = append(b, `,"request_id":`...)
		b = appendQuotedBytes(b, e.ID)
		b = append(b, `,"user_agent":`...)
		b = appendQuotedBytes(b, e.agent)
	}
	b = append(b, `,"upstream":`...)
	b = appendQuoted(b, e.Upstream)
	b = append(b, `,"target":`...)
	b = appendQuoted(b, e.Target)
	b = append(b, `,"duration":`...)
	b = appendSeconds(b, e.took)
	b = append(b, `,"dial":`...)
	b = appendSeconds(b, e.Dial)
	b = append(b, `,"first_byte":`...)
	b = appendSeconds(b, e.First)
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendInt(b, e.In, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendInt(b, e.Out, 10)
	if e.Retries > 0 {
		b = append(b, `,"retries":`...)
		b = strconv.AppendInt(b, int64(e.Retries), 10)
	}
	if e.Reason != "" {
		b = append(b, `,"reason":`...)
		b = appendQuoted(b, e.Reason)
	}
	if e.Detail != "" {
		b = append(b, `,"detail":`...)
		b = appendQuoted(b, e.Detail)
	}
	return append(b, '}', '\n')
}

func (e *entry) appendText(b []byte) []byte {
	b = e.start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, ' ')
	b = e.client.AppendTo(b)
	if e.kind == "http" {
		b = append(b, ' ')
		b = appendQuotedBytes(b, e.method)
		b = append(b, ' ')
		b = appendQuotedBytes(b, e.host)
		b = append(b, ' ')
		b = appendTarget(b, e.target)
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(e.Status), 10)
	} else {
		b = append(b, " tunnel "...)
		b = appendQuotedBytes(b, e.host)
	}
	b = append(b, " route="...)
	b = append(b, e.Route...)
	b = append(b, " target="...)
	b = append(b, e.Target...)
	b = append(b, " in="...)
	b = strconv.AppendInt(b, e.In, 10)
	b = append(b, " out="...)
	b = strconv.AppendInt(b, e.Out, 10)
	b = append(b, " took="...)
	b = appendSeconds(b, e.took)
	if e.tls != "" {
		b = append(b, " tls="...)
		b = append(b, e.tls...)
	}
	if len(e.ID) > 0 {
		b = append(b, " id="...)
		b = append(b, e.ID...)
	}
	if e.Reason != "" {
		b = append(b, " reason="...)
		b = append(b, e.Reason...)
	}
	if e.Detail != "" {
		b = append(b, " detail="...)
		b = appendQuoted(b, e.Detail)
	}
	return append(b, '\n')
}

// appendSeconds writes a duration in seconds with microseconds.
func appendSeconds(b []byte, d time.Duration) []byte {
	us := d.Microseconds()
	b = strconv.AppendInt(b, us/1e6, 10)
	b = append(b, '.')
	for div := int64(100_000); div > 0; div /= 10 {
		b = append(b, byte('0'+us/div%10))
	}
	return b
}

// secretParams are the query parameters whose values are credentials by custom (RFC 6750 section 2.3, signed URLs).
var secretParams = [...]string{
	"access_token", "token", "id_token", "refresh_token", "api_key", "apikey", "key", "password", "passwd", "pwd",
	"secret", "client_secret", "signature", "sig", "auth", "code", "session", "x-amz-signature", "x-amz-credential",
	"x-amz-security-token",
}

// appendTarget writes a request target with the values of secret query parameters taken out.
func appendTarget(b, target []byte) []byte {
	q := bytes.IndexByte(target, '?')
	if q < 0 {
		return appendQuotedBytes(b, target)
	}
	b = append(b, '"')
	b = appendEscaped(b, target[:q+1])
	for rest, first := target[q+1:], true; len(rest) > 0 || first; first = false {
		var pair []byte
		if i := bytes.IndexByte(rest, '&'); i >= 0 {
			pair, rest = rest[:i], rest[i+1:]
		} else {
			pair, rest = rest, nil
		}
		if !first {
			b = append(b, '&')
		}
		name, _, has := bytes.Cut(pair, []byte{'='})
		if has && isSecretParam(name) {
			b = appendEscaped(b, name)
			b = append(b, "=***"...)
			continue
		}
		b = appendEscaped(b, pair)
	}
	return append(b, '"')
}

func isSecretParam(name []byte) bool {
	for _, s := range secretParams {
		if wire.EqualFold(name, s) {
			return true
		}
	}
	return false
}

func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			b = appendEscaped(b, []byte(s[i:]))
			return append(b, '"')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

func appendQuotedBytes(b, s []byte) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s)
	return append(b, '"')
}

// appendEscaped writes s as the inside of a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendEscaped(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, n := utf8.DecodeRune(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
		}
	}
	return b
}
