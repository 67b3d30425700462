package proxy

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/preview"
	"github.com/quaymaster/quaymaster/internal/wire"
)

const (
	// patience is how long somebody in front of a browser waits for an app before there is a page that says what they wait
	// for. What is ready by then shows no page.
	patience = 100 * time.Millisecond
	// shownLines is how many lines of an app's output a page has.
	shownLines = 20
)

// preview is the app whose preview the route is, or "".
func (t *turn) preview() string {
	if f, ok := t.r.act.(*forward); ok {
		return f.preview
	}
	return ""
}

// browses reports whether somebody in front of a browser asks for a page: GET, HTML is liked, and what the browser
// says of its use, if anything, is to show it.
func browses(h *wire.Head) bool {
	if string(h.Method) != http.MethodGet || len(h.Upgrade) > 0 {
		return false
	}
	if use, ok := h.Field("Sec-Fetch-Dest"); ok {
		switch string(use) {
		case "document", "iframe", "frame", "embed", "object":
		default:
			return false
		}
	}
	return wantsHTML(h)
}

// waits reports whether the exchange is to wait for an app that is not ready, whoever asks: outside of previews a page is
// shown only of one that was asleep.
func (f *forward) waits(t *turn, err error) bool {
	var pe *pools.Error
	return errors.As(err, &pe) && pe.Kind == "app_starting" && f.preview == "" && !t.app(pe, 0).Sleeps
}

// app is what is known of the app of an error.
func (t *turn) app(pe *pools.Error, lines int) App {
	name, ok := strings.CutPrefix(pe.Target, "app:")
	if !ok || t.r.o.App == nil {
		return App{}
	}
	return t.r.o.App(name, lines)
}

// starting gives the page that waits for the app and asks again by itself.
func (t *turn) starting(pe *pools.Error) {
	name := t.preview()
	if name == "" {
		t.shown(&preview.Page{
			Status: http.StatusServiceUnavailable, Title: "Starting", Text: "The service behind this address is being started. This page asks again by itself.",
		}, pe.Kind, pe.Error(), 1)
		return
	}
	a := t.app(pe, shownLines)
	p := &preview.Page{
		Status: http.StatusServiceUnavailable, Title: name + " is being started", Text: "This page asks again by itself until it is ready.",
		Reason: a.State, Lines: a.Lines,
	}
	if a.Reason != "" {
		p.Reason += ": " + a.Reason
	}
	t.shown(p, pe.Kind, pe.Error(), 1)
}

// broke says of a preview why there is no answer.
func (t *turn) broke(status int, reason string, err error) {
	name := t.preview()
	p := &preview.Page{Status: status, Title: title(status), Text: "The app " + name + " gave no answer."}
	if err != nil {
		p.Reason = err.Error()
	}
	var a App
	if t.r.o.App != nil {
		a = t.r.o.App(name, shownLines)
	}
	p.Lines = a.Lines
	again := 0
	var pe *pools.Error
	if errors.As(err, &pe) && (pe.Kind == "app" || pe.Kind == "app_late") {
		p.Text = "The app " + name + " does not serve."
		if pe.Err != nil {
			p.Reason = pe.Err.Error()
		}
		if a.State == "backing-off" { // it is started again
			again = 2
		}
	}
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	t.shown(p, reason, detail, again)
}

// shown gives a page: as HTML to who asks for HTML, else as text. again is after how many seconds to ask again, 0 = say
// nothing.
func (t *turn) shown(say *preview.Page, reason, detail string, again int) {
	ex := t.ex
	ex.Log.Reason, ex.Log.Detail = reason, detail
	say.Route, say.Request = ex.Log.Route, string(ex.Log.ID)
	p, _ := pages.Get().(*page)
	p.head.Reset()
	p.head.Status = say.Status
	p.text = p.text[:0]
	html := wantsHTML(&ex.Req)
	if html {
		p.body = say.HTML(p.body[:0])
		p.head.Add(nameContentType, valueHTML)
		p.head.Add(nameCSP, []byte(preview.Policy))
	} else {
		p.body = say.Plain(p.body[:0])
		p.head.Add(nameContentType, valueText)
	}
	p.head.Add(nameCacheControl, valueNoStore)
	p.head.Add(nameNoSniff, valueNoSniff)
	p.head.Add(nameRequestID, ex.Log.ID)
	if again > 0 {
		p.text = strconv.AppendInt(p.text, int64(again), 10)
		p.head.Add(nameRetryAfter, p.text)
		if html && browses(&ex.Req) {
			p.head.Add(nameRefresh, p.text)
		}
	}
	p.send(ex)
	pages.Put(p)
	t.r.out.Add(ex.Log.Out)
}

// works reports whether the script of a service worker is asked for. What it is may not be redirected, so that none is
// registered without the slash: it would rule the folder above, which is that of all previews.
func works(h *wire.Head) bool {
	_, ok := h.Field("Service-Worker")
	return ok
}

// bare reports whether the path is the prefix of the preview itself, without the slash that makes relative links work.
func (f *forward) bare(h *wire.Head) bool {
	raw, _, _ := bytes.Cut(h.Target, []byte{'?'})
	return len(raw) > 0 && len(stripPrefix(raw, f.rewrite.strip)) == 0
}

// slash sends a browser to the path with the slash.
func (f *forward) slash(t *turn) {
	_, query, has := bytes.Cut(t.ex.Req.Target, []byte{'?'})
	to := append(append([]byte(nil), f.prefix...), '/')
	if has {
		to = appendClean(append(to, '?'), query)
	}
	sendRedirect(t.ex, http.StatusPermanentRedirect, to)
}

// maxSunk bounds a body that is read for nothing.
const maxSunk = 256 << 20

// sink reads the body of a request that is sent elsewhere with it: browsers take no answer before they have sent all. One
// who waits to be told to go on has not begun.
func (t *turn) sink() {
	if t.ex.Body.Len() == 0 || t.ex.Req.Expect {
		return
	}
	p, _ := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(p)
	for left := maxSunk; left > 0; {
		if stall := t.r.Plan.Timeouts.BodyStall; stall > 0 {
			t.ex.Body.Deadline(time.Now().Add(stall))
		}
		n, err := t.ex.Body.Read((*p)[:min(left, len(*p))])
		t.ex.Log.In += int64(n)
		t.r.in.Add(int64(n))
		left -= n
		if err != nil { // the end, or a client that does not go on: the connection says so
			return
		}
	}
}

// under puts what the answer says of paths below the prefix of the preview, and notes in the browser that it has opened it.
func (f *forward) under(t *turn) {
	for i := range t.in.Fields {
		field := &t.in.Fields[i]
		switch {
		case wire.EqualFold(field.Name, "Location"), wire.EqualFold(field.Name, "Content-Location"):
			field.Value = f.location(t, field.Value)
		case wire.EqualFold(field.Name, "Set-Cookie"):
			field.Value = f.cookie(t, field.Value)
		case wire.EqualFold(field.Name, "Service-Worker-Allowed"):
			field.Value = f.scope(t, field.Value)
		}
	}
	if browses(&t.ex.Req) {
		had, _ := t.ex.Req.Field("Cookie")
		n := len(t.ex.Scratch)
		if b, news := preview.Opened(t.ex.Scratch, had, f.preview); news {
			t.ex.Scratch = b
			t.in.Add(nameSetCookie, b[n:len(b):len(b)])
		}
	}
}

// scope is how much of the host a service worker may rule: what is not a plain path below the prefix becomes the preview
// as a whole, since the worker stays in the browser when the app is long gone.
func (f *forward) scope(t *turn, v []byte) []byte {
	if below(v, f.prefix) && len(v) > len(f.prefix) && !bytes.ContainsAny(v, "%\\") && !bytes.Contains(v, []byte("/.")) {
		return v
	}
	n := len(t.ex.Scratch)
	t.ex.Scratch = append(append(t.ex.Scratch, f.prefix...), '/')
	return t.ex.Scratch[n:len(t.ex.Scratch):len(t.ex.Scratch)]
}

// location is a URL of an answer as the client has to follow it. One of another host, or below the prefix already, stays
// as it is.
func (f *forward) location(t *turn, v []byte) []byte {
	rest := v
	scheme, after, has := bytes.Cut(v, []byte("//"))
	switch {
	case has && (len(scheme) == 0 || wire.EqualFold(scheme, "http:") || wire.EqualFold(scheme, "https:")):
		n := bytes.IndexAny(after, "/?#")
		if n < 0 {
			n = len(after)
		}
		if !bytes.EqualFold(after[:n], t.ex.Req.Authority) {
			return v
		}
		rest = after[n:]
	case len(v) == 0 || v[0] == '#':
		return v
	case v[0] != '/':
		return f.relative(t, v)
	}
	if below(rest, f.prefix) {
		return v
	}
	n := len(t.ex.Scratch)
	b := append(t.ex.Scratch, v[:len(v)-len(rest)]...)
	b = append(b, f.prefix...)
	if len(rest) == 0 || rest[0] != '/' {
		b = append(b, '/')
	}
	b = append(b, rest...)
	t.ex.Scratch = b
	return b[n:len(b):len(b)]
}

// relative resolves a relative URL as the app means it: from the path it was asked for, and no higher than its own root.
func (f *forward) relative(t *turn, v []byte) []byte {
	base, err := url.ParseRequestURI(string(t.out.Target))
	if err != nil {
		return v
	}
	ref, err := url.Parse(string(v))
	if err != nil || ref.Scheme != "" || ref.Host != "" {
		return v
	}
	to := base.ResolveReference(ref)
	to.Scheme, to.Host = "", ""
	text := to.String()
	if !strings.HasPrefix(text, "/") {
		return v
	}
	return appendClean(append([]byte(nil), f.prefix...), []byte(text))
}

// cookie is a Set-Cookie value with its path below the prefix. A __Host- cookie is one of the whole host or none.
func (f *forward) cookie(t *turn, v []byte) []byte {
	if len(v) > 7 && strings.EqualFold(string(v[:7]), "__Host-") {
		return v
	}
	from, to := -1, -1 // of the path, which is the last there is
	for i := bytes.IndexByte(v, ';'); i >= 0 && i < len(v); {
		end := len(v)
		if n := bytes.IndexByte(v[i+1:], ';'); n >= 0 {
			end = i + 1 + n
		}
		name, value, _ := bytes.Cut(v[i+1:end], []byte{'='})
		if wire.EqualFold(bytes.Trim(name, " \t"), "Path") {
			value = bytes.TrimRight(value, " \t")
			to = i + 1 + len(name) + 1 + len(value)
			value = bytes.TrimLeft(value, " \t")
			from = to - len(value)
		}
		i = end
	}
	n := len(t.ex.Scratch)
	b := t.ex.Scratch
	switch {
	case from >= 0 && from < to && to <= len(v) && v[from] == '/':
		if below(v[from:to], f.prefix) {
			return v
		}
		b = append(append(b, v[:from]...), f.prefix...)
		if to-from > 1 {
			b = append(b, v[from:to]...)
		}
		b = append(b, v[to:]...)
	case f.bare(&t.ex.Req): // the browser would take the folder above
		b = append(append(append(b, v...), "; Path="...), f.prefix...)
	default:
		return v
	}
	t.ex.Scratch = b
	return b[n:len(b):len(b)]
}

// below reports whether a path is the prefix or lies below it.
func below(path, prefix []byte) bool {
	rest, ok := bytes.CutPrefix(path, prefix)
	return ok && (len(rest) == 0 || rest[0] == '/' || rest[0] == '?' || rest[0] == '#')
}
