package http1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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

// refuse answers a request that could not be read; the connection is over. fields are those read before.
func (k *conn) refuse(p *wire.ParseError, fields []wire.Field) {
	id := k.answer(p.Status, p.What, wantsHTML(fields))
	if k.o.Refuse != nil {
		k.o.Refuse(k.info, p, id)
	}
	k.linger()
}

// wantsHTML reports whether Accept names HTML and no JSON. What came of a head that is refused does not deserve a closer
// reading.
func wantsHTML(fields []wire.Field) bool {
	for i := range fields {
		if wire.EqualFold(fields[i].Name, "Accept") {
			v := bytes.ToLower(fields[i].Value)
			return bytes.Contains(v, []byte("text/html")) && !bytes.Contains(v, []byte("json"))
		}
	}
	return false
}

// answer says a status and why, as application/problem+json (RFC 9457) or as a page, names the request, and says that
// the connection is over. detail needs no quoting.
func (k *conn) answer(status int, detail string, html bool) (id string) {
	title := wire.StatusText(status)
	id = fmt.Sprintf("%016x", rand.Uint64()) //nolint:gosec // an identity, not a secret
	kind := "application/problem+json"
	body := fmt.Sprintf(`{"type":"about:blank","title":"%s","status":%d,"detail":"%s","route":"","request_id":"%s"}`, title, status, detail, id)
	h := wire.Head{Status: status}
	if html {
		kind = "text/html; charset=utf-8"
		body = fmt.Sprintf(`<!doctype html><html lang="en"><head><meta charset="utf-8"><title>%d %s</title></head><body>`+
			`<h1>%d %s</h1><p>%s</p><p><small>Request <code>%s</code></small></p></body></html>`, status, title, status, title, detail, id)
		h.Add([]byte("Content-Security-Policy"), []byte("default-src 'none'"))
	}
	body += "\n"
	h.Add([]byte("Date"), time.Now().UTC().AppendFormat(nil, dateFormat))
	h.Add([]byte("Content-Type"), []byte(kind))
	h.Add([]byte("X-Content-Type-Options"), []byte("nosniff"))
	h.Add([]byte("Cache-Control"), []byte("no-store"))
	h.Add([]byte("X-Request-Id"), []byte(id))
	var w wire.BodyWriter
	w.Start(k.c, wire.AppendResponse(nil, &h, wire.ByLength, int64(len(body)), true), wire.ByLength, int64(len(body)))
	w.Share(&k.write, 0)
	w.Deadline(time.Now().Add(lastWords))
	_, _ = w.Write([]byte(body))
	_ = w.Close(nil) // the connection ends either way
	w.Release()
	return id
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
