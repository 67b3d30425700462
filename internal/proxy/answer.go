package proxy

import (
	"bytes"
	"net/http"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// redirect answers with a Location.
type redirect struct {
	status   int
	location template
	tls      bool // to the same URL under https
	rooted   bool // the location begins with a placeholder: it may not become a URL of another host
}

func newRedirect(a *plan.Redirect) *redirect {
	d := &redirect{status: a.Status, tls: a.To == "https"}
	if d.status == 0 {
		d.status = http.StatusPermanentRedirect
	}
	d.location = compile(a.To)
	d.rooted = strings.HasPrefix(a.To, "{path}") || strings.HasPrefix(a.To, "/{path}")
	return d
}

func (d *redirect) serve(t *turn) {
	if !plainHost(t.ex.Req.Authority) {
		t.refuse(http.StatusBadRequest, "bad_request", "the host is no name or address", 0)
		return
	}
	if d.tls {
		redirectTLS(t.ex, d.status, false)
		return
	}
	if t.r.Plan.Match.Preview != nil {
		t.sink()
	}
	to := d.location.value(t)
	if d.rooted {
		to = rooted(to)
	}
	sendRedirect(t.ex, d.status, bytes.TrimSuffix(to, []byte{'?'}))
}

// rooted makes sure that a browser takes to for a path: any number of slashes or backslashes at its start is one slash.
func rooted(to []byte) []byte {
	i := 0
	for i < len(to) && (to[i] == '/' || to[i] == '\\') {
		i++
	}
	if i > 1 {
		to = to[i-1:]
		to[0] = '/'
	}
	return to
}

// RedirectTLS answers with 308 and the request's own URL under https, for a host that wants TLS on the port it was asked on:
// a port that the client named stays, but for 80, where it would not have named it.
func RedirectTLS(ex *wire.Exchange) {
	identify(ex, false)
	if !plainHost(ex.Req.Authority) {
		Refuse(ex, http.StatusBadRequest, "bad_request", "the host is no name or address", 0)
		return
	}
	redirectTLS(ex, http.StatusPermanentRedirect, true)
}

func redirectTLS(ex *wire.Exchange, status int, same bool) {
	n := len(ex.Scratch)
	b := append(ex.Scratch, "https://"...)
	b = append(b, hostOf(ex.Req.Authority)...)
	if i := bytes.LastIndexByte(ex.Req.Authority, ':'); same && i > bytes.LastIndexByte(ex.Req.Authority, ']') {
		if port := string(ex.Req.Authority[i:]); port != ":80" && port != ":443" {
			b = append(b, port...)
		}
	}
	if len(ex.Req.Target) > 0 && ex.Req.Target[0] == '/' {
		b = appendClean(b, ex.Req.Target)
	} else {
		b = append(b, '/')
	}
	ex.Scratch = b
	sendRedirect(ex, status, b[n:len(b):len(b)])
}

func sendRedirect(ex *wire.Exchange, status int, to []byte) {
	p, _ := pages.Get().(*page)
	p.head.Reset()
	p.head.Status = status
	p.body, p.text = p.body[:0], p.text[:0]
	p.head.Add(nameLocation, to)
	p.head.Add(nameRequestID, ex.Log.ID)
	p.send(ex)
	pages.Put(p)
}

// plainHost reports whether an authority is a name or an address with an optional port, so that it can stand in a URL
// and mean the same there.
func plainHost(authority []byte) bool {
	for _, c := range authority {
		if c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte("-._:[]"), c) >= 0 {
			continue
		}
		return false
	}
	return len(authority) > 0
}

// respond answers with what configuration says.
type respond struct {
	status int
	fields []rule
	body   []byte
}

func newRespond(a *plan.Respond) *respond {
	d := &respond{status: a.Status, body: []byte(a.Body)}
	if d.status == 0 {
		d.status = http.StatusOK
	}
	typed := false
	for _, h := range a.Headers {
		if !ruled(h.Name) {
			continue
		}
		typed = typed || strings.EqualFold(h.Name, "Content-Type")
		d.fields = append(d.fields, rule{h.Name, []byte(h.Name), compile(h.Value)})
	}
	if !typed && len(d.body) > 0 {
		d.fields = append(d.fields, rule{"Content-Type", nameContentType, template{fixed: valueText}})
	}
	return d
}

func (d *respond) serve(t *turn) {
	p, _ := pages.Get().(*page)
	p.head.Reset()
	p.head.Status = d.status
	p.text = p.text[:0]
	for i := range d.fields {
		p.head.Add(d.fields[i].name, d.fields[i].value.value(t))
	}
	p.body = append(p.body[:0], d.body...)
	p.send(t.ex)
	pages.Put(p)
	t.r.out.Add(t.ex.Log.Out)
}

// block refuses.
type block struct{ status int }

func (d *block) serve(t *turn) {
	status := d.status
	if status == 0 {
		status = http.StatusForbidden
	}
	t.refuse(status, "blocked", "", 0)
}
