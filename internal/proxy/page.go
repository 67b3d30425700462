package proxy

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/quaymaster/quaymaster/internal/preview"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// sentences tell a client what a status means here, and nothing of what lies behind.
var sentences = map[int]string{
	400: "The request could not be understood.",
	403: "This is not open to you.",
	404: "Nothing is served under this name and path.",
	405: "This cannot be done here.",
	408: "The request was not sent to its end in time.",
	413: "The request body is larger than this route takes.",
	417: "The expectation cannot be met.",
	421: "This connection does not serve the host that was asked for. Try again on a new connection.",
	429: "Too many requests. Try again later.",
	431: "The header of the request is too large.",
	500: "Something went wrong here.",
	501: "This is not supported.",
	502: "The service behind this address could not be reached or gave no valid answer.",
	503: "The service behind this address is not available at the moment. Try again later.",
	504: "The service behind this address did not answer in time.",
	508: "The request came back to where it was sent from.",
}

const (
	pageHead = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
		`<meta name="color-scheme" content="light dark"><title>`
	pageStyle = `</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}` +
		`h1{font-size:1.4em}small{opacity:.7}code{font-family:ui-monospace,monospace}</style></head><body><h1>`
	pagePolicy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

var pages = sync.Pool{New: func() any { return &page{} }}

// page is the storage of one answer of our own.
type page struct {
	head wire.Head
	body []byte
	text []byte // field values
}

// Refuse answers ex with a typed page: problem details in JSON (RFC 9457), or HTML where Accept prefers it. It names the
// status, the route and the request id, and nothing of the inside. reason is one of the fixed words of the log; detail
// goes to the log alone. retryAfter is in seconds; 0 = say nothing. Refuse may be called only while no answer has begun.
func Refuse(ex *wire.Exchange, status int, reason, detail string, retryAfter int) {
	identify(ex, false)
	if reason != "" {
		ex.Log.Reason = reason
	}
	if detail != "" {
		ex.Log.Detail = detail
	}
	p, _ := pages.Get().(*page)
	p.head.Reset()
	p.head.Status = status
	p.body, p.text = p.body[:0], p.text[:0]
	html := wantsHTML(&ex.Req)
	if html {
		p.html(status, ex)
	} else {
		p.problem(status, ex)
	}
	p.head.Add(nameCacheControl, valueNoStore)
	p.head.Add(nameNoSniff, valueNoSniff)
	p.head.Add(nameRequestID, ex.Log.ID)
	if html {
		p.head.Add(nameContentType, valueHTML)
		p.head.Add(nameCSP, []byte(pagePolicy))
	} else {
		p.head.Add(nameContentType, valueProblem)
	}
	if retryAfter > 0 {
		p.text = strconv.AppendInt(p.text, int64(retryAfter), 10)
		p.head.Add(nameRetryAfter, p.text)
	}
	switch status {
	case http.StatusMethodNotAllowed:
		p.head.Add([]byte("Allow"), []byte("GET, HEAD"))
	case http.StatusRequestTimeout:
		p.head.Close = true
	}
	p.send(ex)
	pages.Put(p)
}

// send gives p as the answer.
func (p *page) send(ex *wire.Exchange) {
	if _, ok := p.head.Field("Date"); !ok {
		n := len(p.text)
		p.text = appendDate(p.text)
		p.head.Add(nameDate, p.text[n:])
	}
	ex.Log.Status = p.head.Status
	ex.Log.First = since(ex.Start)
	sink, err := ex.Out.Begin(&p.head, int64(len(p.body)))
	if err != nil {
		return
	}
	if len(p.body) > 0 && !bodyless(ex.Req.Method, p.head.Status) {
		n, err := sink.Write(p.body)
		ex.Log.Out += int64(n)
		if err != nil {
			sink.Reset(err)
			return
		}
	}
	_ = sink.Close(nil) // the client left: nobody to tell
}

// appendDate appends the time as a Date field has it (RFC 9110 section 6.6.1).
func appendDate(b []byte) []byte { return time.Now().UTC().AppendFormat(b, http.TimeFormat) }

func (p *page) problem(status int, ex *wire.Exchange) {
	b := append(p.body, `{"type":"about:blank","title":"`...)
	b = append(b, title(status)...)
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, `,"detail":"`...)
	b = append(b, sentence(status)...)
	b = append(b, `","route":"`...)
	b = appendJSON(b, ex.Log.Route)
	b = append(b, `","request_id":"`...)
	b = appendJSON(b, string(ex.Log.ID))
	p.body = append(b, "\"}\n"...)
}

func (p *page) html(status int, ex *wire.Exchange) {
	b := append(p.body, pageHead...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(b, ' '), title(status)...)
	b = append(b, pageStyle...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(b, ' '), title(status)...)
	b = append(b, "</h1><p>"...)
	b = append(b, sentence(status)...)
	b = append(b, "</p><p><small>"...)
	if ex.Log.Route != "" {
		b = append(b, "Route <code>"...)
		b = preview.Escape(b, ex.Log.Route)
		b = append(b, "</code> &middot; "...)
	}
	b = append(b, "Request <code>"...)
	b = preview.Escape(b, string(ex.Log.ID))
	p.body = append(b, "</code></small></p></body></html>\n"...)
}

func title(status int) string {
	if s := wire.StatusText(status); s != "" {
		return s
	}
	return "Error"
}

func sentence(status int) string {
	if s := sentences[status]; s != "" {
		return s
	}
	return "The request was refused."
}

// identify gives the exchange its request id: a new one, or the client's own where it may be believed and is sane.
func identify(ex *wire.Exchange, believe bool) {
	if len(ex.Log.ID) > 0 {
		return
	}
	if believe {
		if id, ok := ex.Req.Field("X-Request-Id"); ok && saneID(id) {
			ex.Log.ID = id
			return
		}
	}
	const hex = "0123456789abcdef"
	n, r := len(ex.Scratch), rand.Uint64() //nolint:gosec // an identity, not a secret
	for shift := 60; shift >= 0; shift -= 4 {
		ex.Scratch = append(ex.Scratch, hex[r>>shift&15])
	}
	ex.Log.ID = ex.Scratch[n:len(ex.Scratch):len(ex.Scratch)]
}

func saneID(id []byte) bool {
	if len(id) == 0 || len(id) > 128 {
		return false
	}
	for _, c := range id {
		if c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte("-_.:/+="), c) >= 0 {
			continue
		}
		return false
	}
	return true
}

// wantsHTML reports whether Accept names HTML and likes it no less than JSON (RFC 9110 section 12.5.1).
func wantsHTML(h *wire.Head) bool {
	html, json := -1, -1
	for i := range h.Fields {
		if !wire.EqualFold(h.Fields[i].Name, "Accept") {
			continue
		}
		for v := h.Fields[i].Value; len(v) > 0; {
			var item []byte
			item, v, _ = bytes.Cut(v, []byte{','})
			kind, params, _ := bytes.Cut(item, []byte{';'})
			kind = bytes.Trim(kind, " \t")
			switch {
			case wire.EqualFold(kind, "text/html"), wire.EqualFold(kind, "application/xhtml+xml"):
				html = max(html, quality(params))
			case wire.EqualFold(kind, "application/json"), wire.EqualFold(kind, "application/problem+json"):
				json = max(json, quality(params))
			}
		}
	}
	return html > 0 && html >= json
}

// quality reads the q parameter in thousandths.
func quality(params []byte) int {
	for len(params) > 0 {
		var p []byte
		p, params, _ = bytes.Cut(params, []byte{';'})
		p = bytes.Trim(p, " \t")
		if len(p) < 2 || p[0]|0x20 != 'q' || p[1] != '=' {
			continue
		}
		q, err := strconv.ParseFloat(string(p[2:]), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return int(q * 1000)
	}
	return 1000
}

// appendJSON appends s as the inside of a JSON string.
func appendJSON(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}
