package http1

import (
	"strconv"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// What http1 itself refuses, beside what the parser does.
var (
	errSlow   = &wire.ParseError{Status: 408, What: "request head did not come in time"}
	errHeader = &wire.ParseError{Status: 431, What: "request head is too large"}
	errLine   = &wire.ParseError{Status: 414, What: "request line is too long"}
)

const (
	lastWords   = time.Second // to take a refusal, and then to stop sending
	lingerLimit = 256 << 10
	dateFormat  = "Mon, 02 Jan 2006 15:04:05 GMT"
)

// refuse answers a request that could not be read; the connection is over.
func (k *conn) refuse(p *wire.ParseError) {
	k.answer(p.Status, p.What)
	if k.o.Refuse != nil {
		k.o.Refuse(k.info, p)
	}
	k.linger()
}

// answer says a status and why, as application/problem+json (RFC 9457), and that the connection is over. detail needs
// no quoting.
func (k *conn) answer(status int, detail string) {
	body := `{"title":"` + wire.StatusText(status) + `","status":` + strconv.Itoa(status)
	if detail != "" {
		body += `,"detail":"` + detail + `"`
	}
	body += "}\n"
	h := wire.Head{Status: status}
	h.Add([]byte("Date"), time.Now().UTC().AppendFormat(nil, dateFormat))
	h.Add([]byte("Content-Type"), []byte("application/problem+json"))
	h.Add([]byte("Cache-Control"), []byte("no-store"))
	var w wire.BodyWriter
	w.Start(k.c, wire.AppendResponse(nil, &h, wire.ByLength, int64(len(body)), true), wire.ByLength, int64(len(body)))
	w.Share(&k.write, 0)
	w.Deadline(time.Now().Add(lastWords))
	_, _ = w.Write([]byte(body))
	_ = w.Close(nil) // the connection ends either way
	w.Release()
}

// linger lets the last answer reach a client that is still sending: closing a socket with unread bytes resets it, and
// the reset overtakes what was written (RFC 9112 section 9.6).
func (k *conn) linger() {
	half, ok := k.c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	k.read.Forget()
	k.read.Set(time.Now().Add(lastWords))
	b := wire.GetBuffer()
	defer b.Put()
	p, _ := b.Room(1) // an empty buffer has room
	for left := lingerLimit; left > 0; {
		n, err := k.c.Read(p)
		if err != nil {
			return
		}
		left -= n
	}
}
