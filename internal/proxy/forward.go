package proxy

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/wire"
)

const (
	// continueAfter is how long a target may take to say 100 before the body is sent without it (RFC 9110 section
	// 10.1.1 wants no indefinite wait).
	continueAfter = time.Second
	// earlyGrace is how long a request body may still be on its way when its answer has ended.
	earlyGrace = 50 * time.Millisecond
)

// forward sends the exchange on to a target of the route's upstream.
type forward struct {
	sendProxy         int
	rewrite           rewrite
	request, response rules
	ruled             []string // request fields that rules touch
	retries           plan.Retries
	budget            budget
	byName            bool   // the target is the host that the client names
	preview           string // the app, where the route is its preview
	prefix            []byte // of the preview, which the app does not know
	base              bool   // <base href> of pages is put below it
}

func newForward(a *plan.Forward) *forward {
	f := &forward{
		sendProxy: a.SendProxy, rewrite: compileRewrite(&a.Rewrite), retries: a.Retries,
		request: compileRules(&a.RequestHeaders), response: compileRules(&a.ResponseHeaders),
		preview: a.Preview.App, prefix: []byte(a.Preview.Prefix), base: a.Preview.Base,
	}
	f.ruled = f.request.names()
	f.budget.milli.Store(budgetMost)
	return f
}

func newByName() *forward { return &forward{byName: true} }

// budget bounds retries to a share of the requests, so that a target in trouble is not given twice the load.
type budget struct{ milli atomic.Int64 }

const budgetMost = 10_000 // ten retries in store

func (b *budget) earn(share float64) {
	if n := b.milli.Load(); n < budgetMost {
		b.milli.Add(int64(share * 1000))
	}
}

func (b *budget) spend() bool {
	if b.milli.Add(-1000) >= 0 {
		return true
	}
	b.milli.Add(1000)
	return false
}

func (f *forward) serve(t *turn) {
	ex := t.ex
	switch {
	case string(ex.Req.Method) == http.MethodConnect:
		t.refuse(http.StatusNotImplemented, "method", "CONNECT is not forwarded", 0)
		return
	case passes(&ex.Req) > maxVia:
		t.refuse(http.StatusLoopDetected, "loop", "the request has passed through here too often: a target leads back to us", 0)
		return
	}
	if len(f.prefix) > 0 && f.bare(&ex.Req) && (browses(&ex.Req) || works(&ex.Req)) {
		f.slash(t)
		return
	}
	if f.retries.Attempts > 1 {
		f.budget.earn(f.retries.Budget)
	}
	f.prepare(t)
	t.watch.begin(t)
	for try := 1; f.attempt(t, try); try++ {
		ex.Log.Retries++
	}
	t.watch.end()
	t.stream.Close(false) // clears an Abort that came late
}

// prepare builds the head for the target and sets the clocks.
func (f *forward) prepare(t *turn) {
	ex, req := t.ex, &t.ex.Req
	fields := t.out.Fields[:0]
	t.out = wire.Head{
		Method: req.Method, Scheme: req.Scheme, Authority: req.Authority, Target: f.rewrite.apply(t),
		Minor: 1, Fields: fields, Length: req.Length, Trailers: req.Trailers,
	}
	if wire.EqualFold(req.Upgrade, "websocket") && string(req.Method) == http.MethodGet && ex.Body.Len() == 0 {
		t.out.Upgrade = websocket
	}
	f.copyFields(t)
	switch {
	case f.request.host != nil:
		t.out.Authority = f.request.host.value(t)
	case len(f.rewrite.setHost) > 0:
		t.out.Authority = f.rewrite.setHost
	}
	t.out.Expect = req.Expect && ex.Body.Len() != 0
	clocks := &t.r.Plan.Timeouts
	if ex.Start.IsZero() {
		ex.Start = time.Now()
	}
	t.seen.TouchAt(ex.Start)
	t.down = relay.Flow{Read: clocks.Idle, Write: clocks.BodyStall, Activity: &t.seen, Count: &t.r.out}
	t.up.reset()
	t.up.flow = relay.Flow{Read: clocks.BodyStall, Write: clocks.BodyStall, Activity: &t.seen, Count: &t.r.in}
	t.ask = pools.Ask{Client: ex.Conn.Client, Local: ex.Conn.Local, SendProxy: f.sendProxy}
	t.sticky = ""
	if t.r.Pool != nil {
		if t.sticky = t.r.Pool.StickyCookie(); t.sticky != "" {
			t.ask.Sticky = cookie(req, t.sticky)
		}
		if t.r.Pool.HasApps() && browses(req) {
			t.ask.Patience = patience
		}
	}
}

// attempt is one try at one target. It reports whether there should be another; if not, an answer was given.
func (f *forward) attempt(t *turn, try int) (again bool) {
	start := t.ex.Start
	if try > 1 {
		start = time.Now()
	}
	t.ask.Now = start
	if err := f.open(t); err != nil {
		t.ex.Log.Dial += time.Since(start)
		return f.unopened(t, err, try)
	}
	if !t.stream.Reused() {
		t.ex.Log.Dial += time.Since(start)
	}
	t.ex.Log.Target = t.stream.Target()
	if t.r.Pool != nil {
		t.ex.Log.Upstream = t.r.Pool.Name()
	}
	if f.rewrite.target {
		t.out.Authority = t.targetHost()
	}
	err := t.send()
	var body wire.Body
	// An answer, or a refusal in words of TLS, may have come although the request was not taken to its end.
	if err == nil || t.up.began || closed(err) && !t.stream.Reused() {
		body, err = t.receive()
	}
	if err != nil {
		return f.unanswered(t, err, try)
	}
	if slices.Contains(f.retries.Statuses, t.in.Status) && f.repeatable(t, try) {
		t.stream.Close(false)
		return true
	}
	if t.in.Status == http.StatusSwitchingProtocols {
		f.upgrade(t)
		return false
	}
	f.passOn(t, body)
	return false
}

func (f *forward) open(t *turn) error {
	if f.byName {
		return t.openName()
	}
	err := t.r.Pool.Open(&t.ask, &t.stream)
	if t.ask.Patience > 0 && err != nil && f.waits(t, err) {
		t.ask.Patience = 0
		err = t.r.Pool.Open(&t.ask, &t.stream)
	}
	return err
}

// targetHost is the target's own host, as `set_host: target` wants it.
func (t *turn) targetHost() []byte {
	text := []byte(t.stream.Target())
	if _, after, ok := bytes.Cut(text, []byte("://")); ok {
		text = after
	}
	if bytes.HasPrefix(text, []byte("unix:")) || !plainHost(text) {
		return []byte("localhost")
	}
	if i := bytes.LastIndexByte(text, ':'); i > 0 && text[i-1] != ':' {
		if _, err := strconv.ParseUint(string(text[i+1:]), 10, 16); err != nil && bytes.IndexByte(text[i:], ']') < 0 {
			text = text[:i]
		}
	}
	return text
}

// send starts the request. A body that is here already goes out at once; any other gets a goroutine, because an answer
// may begin before it has ended.
func (t *turn) send() error {
	ex := t.ex
	n := ex.Body.Len()
	sink, err := t.stream.Send(&t.out, n)
	if err != nil {
		return err
	}
	t.sent = time.Time{}
	if n == 0 {
		return sink.Close(nil)
	}
	t.up.sink = sink
	switch {
	case t.out.Expect:
		t.up.pending = true
		return sink.Flush()
	case n > 0 && int64(ex.Body.Buffered()) >= n:
		t.up.began = true
		t.upload()
		return t.up.err
	}
	t.startUpload()
	return nil
}

// receive waits for the final head of the answer, passing on interim ones.
func (t *turn) receive() (wire.Body, error) {
	most := t.r.Plan.Timeouts.ResponseHeader
	for {
		var deadline time.Time
		switch {
		case t.up.pending:
			deadline = time.Now().Add(continueAfter)
		case most > 0:
			deadline = t.patience(most)
		}
		t.in.Reset()
		body, err := t.stream.Recv(&t.in, deadline)
		switch {
		case err == nil && body != nil:
			return body, nil
		case err == nil && t.in.Status == http.StatusContinue:
			if t.up.pending {
				t.startUpload()
			}
		case err == nil:
			if err := t.ex.Out.Inform(&t.in); err != nil {
				return nil, &relay.SideError{Side: relay.Dest, Err: err}
			}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case t.up.pending:
			t.startUpload()
		case t.patience(most).After(time.Now()):
		default:
			return nil, err
		}
	}
}

// patience is when response_header is over: that long after the request went out. While its body is still moving the
// clock has not begun.
func (t *turn) patience(most time.Duration) time.Time {
	if t.up.began && !t.up.over.Load() {
		return time.Now().Add(most)
	}
	if t.sent.IsZero() {
		t.sent = time.Now()
	}
	return t.sent.Add(most)
}

// passOn gives the target's answer to the client.
func (f *forward) passOn(t *turn, body wire.Body) {
	ex, in := t.ex, &t.in
	if t.sticky != "" {
		t.setSticky()
	}
	ex.Log.Status, ex.Log.First = in.Status, since(ex.Start)
	if _, ok := in.Field("Date"); !ok {
		in.Add(nameDate, t.r.o.date.at(ex.Start.Add(ex.Log.First)))
	}
	if len(f.prefix) > 0 {
		f.under(t)
	}
	f.response.apply(in, t)
	if f.base && changeable(in) {
		body = &based{Body: body, prefix: string(f.prefix)}
		in.Length = -1
	}
	n, empty := body.Len(), bodyless(ex.Req.Method, in.Status)
	if empty {
		n = in.Length
	}
	in.Close, in.Chunked = t.unwanted(), false
	if in.Status != http.StatusUpgradeRequired { // which must say to what (RFC 9110 section 15.5.22)
		in.Upgrade = nil
	}
	sink, err := ex.Out.Begin(in, n)
	switch {
	case err != nil:
		err = &relay.SideError{Side: relay.Dest, Err: err}
	case empty:
		if err = sink.Close(nil); err != nil {
			err = &relay.SideError{Side: relay.Dest, Err: err}
		}
	default:
		if body.Buffered() == 0 {
			_ = sink.Flush() // the head does not wait for the body; Body says what is wrong with the client
		}
		ex.Log.Out, err = relay.Body(sink, body, &t.down)
	}
	if err != nil {
		t.broken(err)
	}
	whole := t.endUpload()
	t.stream.Close(err == nil && whole)
}

// setSticky sets the cookie that leads the client back to this target, unless it has it.
func (t *turn) setSticky() {
	value := t.stream.StickyValue()
	if len(value) == 0 || bytes.Equal(value, t.ask.Sticky) {
		return
	}
	n := len(t.ex.Scratch)
	b := append(append(append(t.ex.Scratch, t.sticky...), '='), value...)
	b = append(b, "; Path=/; HttpOnly; SameSite=Lax"...)
	if string(schemeOf(t.ex)) == "https" {
		b = append(b, "; Secure"...)
	}
	t.ex.Scratch = b
	t.in.Add(nameSetCookie, b[n:len(b):len(b)])
}
