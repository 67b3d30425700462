//go:build linux

package load

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// webSocket sends messages over s.long, gets each back, and closes properly.
func webSocket(ctx context.Context, s *session) {
	l, r := s.open(ctx)
	if l == nil {
		return
	}
	defer l.close()
	defer func() { s.finish(r) }()
	shake, stop := context.WithTimeout(ctx, patience)
	defer stop()
	h := &handshake{l: l}
	c, res, err := websocket.Dial(shake, fmt.Sprintf("ws://127.0.0.1:%d/ws", s.to.Port), &websocket.DialOptions{ //nolint:bodyclose // the library has read it
		HTTPClient: &http.Client{Transport: h}, Host: s.to.Name, HTTPHeader: http.Header{headNonce: {r.Nonce}},
	})
	if err != nil {
		s.notUpgraded(r, res, err, h.begun)
		return
	}
	defer func() { _ = c.CloseNow() }()
	r.Target = res.Header.Get(headTarget)
	if why := l.falseHead(res, r); why != "" {
		r.fail(&falseAnswer{why}, true)
		return
	}
	if err := s.talk(ctx, c, r); err != nil {
		r.fail(err, true)
		return
	}
	r.Outcome = Answered
}

// handshake is a request for a WebSocket on a connection that is there already. One of net/http would take what a foreign
// listener says before it was asked for an error of its own.
type handshake struct {
	l     *link
	begun bool // a byte of the answer came
}

// RoundTrip sends the request and reads the head of its answer; after a 101 the body is the connection.
func (h *handshake) RoundTrip(req *http.Request) (*http.Response, error) {
	werr := req.Write(h.l) // an answer may have come before the connection was closed to us
	res, begun, err := h.l.answer(req.Method)
	h.begun = begun
	if err != nil {
		return nil, err
	}
	if werr != nil {
		_ = res.Body.Close()
		return nil, werr
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		_ = h.l.SetDeadline(time.Time{}) // from here on every message has its own
		res.Body = upgraded{h.l.r, h.l}
	}
	return res, nil
}

type upgraded struct {
	io.Reader
	io.WriteCloser
}

// notUpgraded sorts a handshake that failed.
func (s *session) notUpgraded(r *Report, res *http.Response, err error, begun bool) {
	if res == nil {
		r.fail(err, begun)
		return
	}
	page, _ := io.ReadAll(res.Body) // the library keeps the beginning of it
	if r.Target = res.Header.Get(headTarget); r.Target == "" {
		r.own(res.StatusCode, page)
		return
	}
	r.fail(&falseAnswer{err.Error()}, true)
}

// talk sends messages and wants each of them back.
func (s *session) talk(ctx context.Context, c *websocket.Conn, r *Report) error {
	const n = 20
	for i := range n {
		one, stop := context.WithTimeout(ctx, patience)
		err := c.Write(one, websocket.MessageText, fmt.Appendf(nil, "message %d", i))
		var got []byte
		if err == nil {
			_, got, err = c.Read(one)
		}
		stop()
		if err != nil {
			return closedBy(err)
		}
		if want := fmt.Sprintf("%s %s message %d", r.Target, r.Nonce, i); string(got) != want {
			return &falseAnswer{fmt.Sprintf("message %q, want %q", got, want)}
		}
		if !wait(ctx, s.long/n) {
			return ctx.Err()
		}
	}
	return closedBy(c.Close(websocket.StatusNormalClosure, ""))
}

// closedBy makes a cut of a close frame that was not ours; it may cross ours on the way.
func closedBy(err error) error {
	if code := websocket.CloseStatus(err); code != -1 {
		return fmt.Errorf("close %d: %w", code, io.ErrUnexpectedEOF)
	}
	return err
}
