package proxy

import (
	"errors"
	"net/http"
	"os"
	"syscall"

	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// statusGone is logged, never sent, for a client that left before there was an answer.
const statusGone = 499

// unopened answers for a target that could not be reached, or asks for another try: nothing was sent yet, so that any
// request may be tried again.
func (f *forward) unopened(t *turn, err error, try int) (again bool) {
	var pe *pools.Error
	if !errors.As(err, &pe) {
		t.fail(http.StatusBadGateway, "upstream", err)
		return false
	}
	if t.watch.left() || pe.Kind == "aborted" {
		t.gone()
		return false
	}
	switch pe.Kind {
	case "refused", "unreachable", "timeout", "dns", "tls":
		if f.retries.Connect && try < f.retries.Attempts && f.budget.spend() {
			t.avoid(pe.Member)
			return true
		}
	}
	t.ex.Log.Upstream, t.ex.Log.Target = pe.Upstream, pe.Target
	if pe.Kind == "app_starting" {
		t.starting(pe)
		return false
	}
	t.fail(pe.Status(), pe.Kind, err)
	return false
}

// unanswered answers for a target that took the request, or a part of it, and gave no answer; or asks for another try
// where the request can be sent again without harm.
func (f *forward) unanswered(t *turn, err error, try int) (again bool) {
	whole := t.endUpload()
	defer t.stream.Close(false)
	var pe *pools.Error
	var side *relay.SideError
	switch {
	case t.watch.left():
		t.gone()
	case !whole && t.unread():
	case errors.As(err, &side) && side.Side == relay.Dest && !t.up.began: // an interim answer the client did not take
		t.gone()
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.blame("no answer in time")
		t.fail(http.StatusGatewayTimeout, "timeout", err)
	case t.stream.Stale() && t.replayable() && try <= maxStale:
		return true
	case t.replayable() && f.repeats(http.StatusBadGateway) && f.repeatable(t, try):
		return true
	case errors.As(err, &pe):
		t.fail(pe.Status(), pe.Kind, err)
	default:
		t.fail(http.StatusBadGateway, "reset", err)
	}
	return false
}

// maxStale is the last try that may still meet a connection which ended while it was idle.
const maxStale = 2

// replayable reports whether the request can be sent again although a target may have acted on it: a safe method
// (RFC 9110 section 9.2.1) and not a byte of a body.
func (t *turn) replayable() bool {
	if t.up.began || t.ex.Body.Len() != 0 {
		return false
	}
	switch string(t.ex.Req.Method) {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return false
}

// repeatable reports whether configuration allows one more try, and spends it.
func (f *forward) repeatable(t *turn, try int) bool {
	if try >= f.retries.Attempts || !t.replayable() || !f.budget.spend() {
		return false
	}
	t.avoid(t.stream.Member())
	return true
}

func (f *forward) repeats(status int) bool {
	for _, s := range f.retries.Statuses {
		if s == status {
			return true
		}
	}
	return false
}

// avoid lets the next try go to another target, if there is one.
func (t *turn) avoid(m *pools.Member) {
	for i := range t.ask.Not {
		if t.ask.Not[i] == nil {
			t.ask.Not[i] = m
			return
		}
	}
}

// unread answers for a request body that the client did not send to its end. It reports false when the body is not at
// fault.
func (t *turn) unread() bool {
	var side *relay.SideError
	err := t.up.err
	if t.up.stopped || !errors.As(err, &side) || side.Side != relay.Source {
		return false
	}
	var parse *wire.ParseError
	switch {
	case errors.Is(err, errTooLarge):
		t.fail(http.StatusRequestEntityTooLarge, "body_too_large", nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.fail(http.StatusRequestTimeout, "body_stall", nil)
	case errors.As(err, &parse):
		t.fail(parse.Status, "bad_request", err)
	case errors.Is(err, syscall.ECONNRESET):
		t.gone()
	default:
		t.fail(http.StatusBadRequest, "client_gone", err)
	}
	return true
}

// fail gives the error page.
func (t *turn) fail(status int, reason string, err error) {
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	retry := 0
	if status == http.StatusServiceUnavailable {
		retry = 1
	}
	if t.preview() != "" && (status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout) {
		t.broke(status, reason, err)
		return
	}
	t.refuse(status, reason, detail, retry)
}

// gone notes that the client left. The connection is over: there is nobody to answer.
func (t *turn) gone() {
	t.ex.Log.Status, t.ex.Log.Reason = statusGone, "client_gone"
}

// blame counts a failure that only we saw against the target.
func (t *turn) blame(why string) {
	if t.r.Pool != nil {
		t.r.Pool.Fail(t.stream.Member(), why)
	}
}

// broken notes why an answer that had begun did not reach its end.
func (t *turn) broken(err error) {
	log := &t.ex.Log
	log.Detail = err.Error()
	var side *relay.SideError
	late := errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case t.watch.left():
		log.Reason = "client_gone"
	case errors.As(err, &side) && side.Side == relay.Dest && late:
		log.Reason = "body_stall"
	case side != nil && side.Side == relay.Dest:
		log.Reason = "client_gone"
	case late:
		log.Reason = "idle"
	case errors.Is(t.up.result(), errTooLarge):
		log.Reason = "body_too_large"
	default:
		log.Reason = "target_reset"
	}
}
