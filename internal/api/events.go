package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// sse says that an answer is a stream of events, and how long one write may take.
const (
	sse         = "text/event-stream"
	streamWrite = 20 * time.Second
	heartbeat   = 15 * time.Second
)

// events streams what happens. A client begins with what is to come, with the last N (?last=N) or behind the event that
// Last-Event-ID names. One that reads too slowly is told how many it missed.
func (a *API) events(w http.ResponseWriter, r *request) error {
	if a.o.Events == nil {
		return missing("a stream of events")
	}
	from, err := a.cursor(r)
	if err != nil {
		return err
	}
	return a.stream(w, r, func(ctx context.Context) (bool, error) {
		next, err := a.send(ctx, w, from)
		from = next
		return true, err
	})
}

// stream answers with server-sent events: send writes the next as often as it can and says whether it is to leave at
// once, until it fails, the client leaves or the daemon stops. So many streams are open at once and no more.
func (a *API) stream(w http.ResponseWriter, r *request, send func(context.Context) (flush bool, err error)) error {
	select {
	case a.streams <- struct{}{}:
	default:
		return problem(http.StatusServiceUnavailable, "too many event streams are open; close one")
	}
	defer func() { <-a.streams }()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // nothing more is to come; a client that left is noticed by the context
	h := w.Header()
	h.Set("Content-Type", sse)
	h.Set("Cache-Control", "no-store")
	_ = rc.SetWriteDeadline(time.Now().Add(streamWrite))
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.over, cancel)()
	for {
		flush, err := send(ctx)
		if err != nil || flush && rc.Flush() != nil {
			return nil // over, or the client left
		}
	}
}

// cursor is the number of the first event that the client wants.
func (a *API) cursor(r *request) (uint64, error) {
	end := a.o.Events.End()
	if v := r.Header.Get("Last-Event-ID"); v != "" {
		if n, err := strconv.ParseUint(v, 10, 64); err == nil && n < end {
			return n + 1, nil
		}
		return end, nil // of an earlier daemon
	}
	v := r.URL.Query().Get("last")
	if v == "" {
		return end, nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, problem(http.StatusBadRequest, "last is a number of events, not "+clip(v))
	}
	return end - min(n, end-1), nil
}

// send writes one event, or a comment when nothing has happened for a while, and returns the cursor behind it.
func (a *API) send(ctx context.Context, w http.ResponseWriter, from uint64) (uint64, error) {
	wait, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	e, n, err := a.o.Events.Next(wait, from)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(streamWrite))
	if err != nil {
		if ctx.Err() != nil {
			return from, ctx.Err()
		}
		_, err = fmt.Fprint(w, ": still here\n\n")
		return from, err
	}
	if n > from {
		if _, err := fmt.Fprintf(w, "event: missed\ndata: {\"missed\":%d}\n\n", n-from); err != nil {
			return from, err
		}
	}
	e.ID = n
	text, err := json.Marshal(e)
	if err != nil {
		return from, err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", n, e.Kind, text)
	return n + 1, err
}
