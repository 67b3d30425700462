//go:build linux

package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// A Kind is one way to use a connection.
type Kind struct {
	Name    string
	Class   Class
	Long    bool // takes Fleet.Long, and one in four of them three times that
	Safe    bool // its requests may be repeated by a proxy
	Workers int  // of every 40
	run     func(ctx context.Context, s *session)
}

// Kinds are all of them.
func Kinds() []Kind {
	return []Kind{
		{Name: "keep-alive", Class: HTTP, Safe: true, Workers: 6, run: keepAlive},
		{Name: "one-shot", Class: HTTP, Safe: true, Workers: 4, run: oneShot},
		{Name: "post", Class: HTTP, Workers: 3, run: post},
		{Name: "chunked", Class: HTTP, Workers: 3, run: chunked},
		{Name: "slow upload", Class: HTTP, Long: true, Workers: 2, run: slowUpload},
		{Name: "download", Class: HTTP, Long: true, Safe: true, Workers: 3, run: download},
		{Name: "events", Class: HTTP, Long: true, Safe: true, Workers: 3, run: events},
		{Name: "websocket", Class: HTTP, Long: true, Safe: true, Workers: 3, run: webSocket},
		{Name: "tls", Class: TLS, Workers: 4, run: passthrough},
		{Name: "tls download", Class: TLS, Long: true, Workers: 2, run: passthroughDownload},
		{Name: "raw", Class: Raw, Workers: 2, run: rawQuick},
		{Name: "raw long", Class: Raw, Long: true, Workers: 2, run: rawLong},
		{Name: "first", Class: First, Workers: 2, run: rawQuick},
		{Name: "first long", Class: First, Long: true, Workers: 1, run: rawLong},
	}
}

// session is one turn of a worker: everything it does on one connection.
type session struct {
	f    *Fleet
	kind *Kind
	rng  *rand.Rand
	to   Endpoint
	long time.Duration // of a long exchange
}

// begin starts a report.
func (s *session) begin(l *link, to Endpoint) *Report {
	r := &Report{Kind: s.kind.Name, Endpoint: to, Nonce: s.f.nonce(), Safe: s.kind.Safe, Began: time.Now().UnixNano()}
	if l != nil {
		r.Opened, r.Reused = l.opened, l.used
		l.used = true
	}
	return r
}

// finish hands a report in.
func (s *session) finish(r *Report) {
	r.Ended = time.Now().UnixNano()
	s.f.Report(*r)
}

// open dials. On an error the exchange that would have come is reported.
func (s *session) open(ctx context.Context) (*link, *Report) {
	r := s.begin(nil, s.to)
	l, err := dial(ctx, s.rng, s.to)
	r.Opened = l.opened
	if err == nil && s.to.Class == TLS {
		err = l.secure(s.to.Name)
	}
	if err != nil {
		l.close()
		r.fail(err, false)
		s.finish(r)
		return nil, nil
	}
	l.used = true
	return l, r
}

// once makes one exchange on a connection of its own.
func (s *session) once(ctx context.Context, what func(l *link, r *Report) *ask) {
	l, r := s.open(ctx)
	if l == nil {
		return
	}
	defer l.close()
	l.exchange(what(l, r), r)
	s.finish(r)
}

// echoed wants "ID NONCE" as the body.
func echoed(r *Report) func(io.Reader) error {
	return func(body io.Reader) error { return wantBody(body, fmt.Sprintf("%s %s\n", r.Target, r.Nonce)) }
}

func wantBody(body io.Reader, want string) error {
	b, err := io.ReadAll(io.LimitReader(body, 4096))
	if err == nil && string(b) != want {
		err = &falseAnswer{fmt.Sprintf("body %q, want %q", b, want)}
	}
	return err
}

// keepAlive asks a connection's port for one name after the other, until the server says that it is enough.
func keepAlive(ctx context.Context, s *session) {
	l, r := s.open(ctx)
	if l == nil {
		return
	}
	defer l.close()
	for left := 5 + s.rng.IntN(60); ; left-- {
		again := l.exchange(&ask{method: "GET", path: "/echo", last: left <= 1, read: echoed(r)}, r)
		s.finish(r)
		if !again || s.f.pausing.Load() || !wait(ctx, s.f.think(s.rng)) {
			return
		}
		to, ok := s.f.Source.Beside(s.rng, s.to)
		if !ok {
			to = s.to
		}
		r = s.begin(l, to)
	}
}

func oneShot(ctx context.Context, s *session) {
	s.once(ctx, func(_ *link, r *Report) *ask {
		return &ask{method: "GET", path: "/echo", last: s.rng.IntN(2) == 0, read: echoed(r)}
	})
}

func post(ctx context.Context, s *session) {
	l, r := s.open(ctx)
	if l == nil {
		return
	}
	defer l.close()
	for left := 1 + s.rng.IntN(10); ; left-- {
		size := int64(s.rng.IntN(2 << 10))
		if s.rng.IntN(4) == 0 {
			size = int64(s.rng.IntN(400 << 10))
		}
		again := l.exchange(summed(r, size, func(w io.Writer) error {
			_, err := io.CopyN(w, &pattern{nonce: r.Nonce}, size)
			return err
		}), r)
		s.finish(r)
		if !again || left <= 1 || s.f.pausing.Load() || !wait(ctx, s.f.think(s.rng)) {
			return
		}
		r = s.begin(l, s.to)
	}
}

// summed is a POST whose answer tells what the target received.
func summed(r *Report, size int64, send func(io.Writer) error) *ask {
	return &ask{method: "POST", path: "/sum", size: size, body: send, read: func(body io.Reader) error {
		_, digest, _ := sum(io.LimitReader(&pattern{nonce: r.Nonce}, size))
		return wantBody(body, fmt.Sprintf("%s %s %d %x\n", r.Target, r.Nonce, size, digest))
	}}
}

// slowUpload sends a body of known length in small pieces.
func slowUpload(ctx context.Context, s *session) {
	const pieces, size = 20, 4 << 10
	s.once(ctx, func(_ *link, r *Report) *ask { return summed(r, pieces*size, s.paced(ctx, r, pieces, size)) })
}

// paced writes content in pieces over s.long.
func (s *session) paced(ctx context.Context, r *Report, pieces, size int) func(io.Writer) error {
	every := s.long / time.Duration(pieces)
	src := &pattern{nonce: r.Nonce}
	return func(w io.Writer) error {
		b := make([]byte, size)
		for range pieces {
			_, _ = src.Read(b)
			if _, err := w.Write(b); err != nil {
				return err
			}
			if !wait(ctx, every) {
				return ctx.Err()
			}
		}
		return nil
	}
}

// chunked sends a body in chunks and gets it back in chunks while it is still being sent.
func chunked(ctx context.Context, s *session) { s.once(ctx, s.mirrored) }

func (s *session) mirrored(_ *link, r *Report) *ask {
	pieces, size := 1+s.rng.IntN(20), 1+s.rng.IntN(8<<10)
	send := func(w io.Writer) error {
		src, b := &pattern{nonce: r.Nonce}, make([]byte, size)
		for range pieces {
			_, _ = src.Read(b)
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		return nil
	}
	return &ask{method: "POST", path: "/mirror", size: -1, body: send, read: func(body io.Reader) error {
		n, err := io.Copy(&pattern{nonce: r.Nonce}, body)
		return whole(n, int64(pieces*size), err)
	}}
}

// whole is an error when less or more came than was to come.
func whole(n, want int64, err error) error {
	if err == nil && n != want {
		err = &falseAnswer{fmt.Sprintf("%d bytes of %d, and a clean end", n, want)}
	}
	return err
}

// downloaded asks for about 2 MB in pieces over s.long.
func (s *session) downloaded(l *link, r *Report) *ask {
	const pieces, size = 25, 80 << 10
	path := fmt.Sprintf("/download?n=%d&size=%d&ms=%d", pieces, size, s.long.Milliseconds()/pieces)
	return &ask{method: "GET", path: path, read: func(body io.Reader) error {
		n, err := io.Copy(&pattern{nonce: r.Nonce}, &patient{l, body})
		return whole(n, pieces*size, err)
	}}
}

// patient gives every read its time.
type patient struct {
	l *link
	r io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.l.SetReadDeadline(time.Now().Add(patience))
	return p.r.Read(b)
}

func download(ctx context.Context, s *session) { s.once(ctx, s.downloaded) }

// events reads a stream of server-sent events, each of which must come, in order.
func events(ctx context.Context, s *session) {
	const n = 30
	path := fmt.Sprintf("/events?n=%d&ms=%d", n, s.long.Milliseconds()/n)
	s.once(ctx, func(l *link, r *Report) *ask {
		return &ask{method: "GET", path: path, read: func(body io.Reader) error {
			lines := bufio.NewReader(&patient{l, body})
			for i := range n {
				if err := wantEvent(lines, fmt.Sprintf("data: %s %d\n\n", r.Nonce, i)); err != nil {
					return err
				}
			}
			return nil
		}}
	})
}

func wantEvent(r io.Reader, want string) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		return err
	}
	if string(got) != want {
		return &falseAnswer{fmt.Sprintf("event %q, want %q", got, want)}
	}
	return nil
}

func passthrough(ctx context.Context, s *session) {
	s.once(ctx, func(_ *link, r *Report) *ask { return &ask{method: "GET", path: "/echo", read: echoed(r)} })
}

func passthroughDownload(ctx context.Context, s *session) { s.once(ctx, s.downloaded) }

func rawQuick(ctx context.Context, s *session) { s.raw(ctx, 1+s.rng.IntN(10), s.rng.IntN(8<<10), 0) }

func rawLong(ctx context.Context, s *session) { s.raw(ctx, 20, 200, s.long/20) }

// raw speaks the raw protocol: every line comes back, and after our FIN the target's last word and its own.
func (s *session) raw(ctx context.Context, lines, size int, every time.Duration) {
	l, r := s.open(ctx)
	if l == nil {
		return
	}
	defer l.close()
	begun, err := s.rawTalk(ctx, l, r, lines, size, every)
	if err == nil {
		r.Outcome = Answered
	} else {
		r.fail(err, begun)
	}
	s.finish(r)
}

func (s *session) rawTalk(ctx context.Context, l *link, r *Report, lines, size int, every time.Duration) (begun bool, err error) {
	if s.to.Class == First {
		hi, err := l.line()
		if err != nil {
			return hi != "", err
		}
		begun = true
		r.Target = strings.TrimPrefix(hi, "hi ")
	}
	if _, err := fmt.Fprintf(l, "%s%s\n", rawHello, r.Nonce); err != nil {
		return begun, err
	}
	hello, err := l.line()
	if err != nil {
		return begun || hello != "", err
	}
	w := strings.Split(hello, " ")
	if len(w) != 3 || w[1] != r.Nonce || r.Target != "" && w[0] != r.Target {
		return true, &falseAnswer{fmt.Sprintf("greeting %q", hello)}
	}
	r.Target, r.Proxied = w[0], w[2] != ""
	if r.Proxied && w[2] != l.who() {
		return true, &falseAnswer{fmt.Sprintf("the PROXY header says %s, the client is %s", w[2], l.who())}
	}
	pad := bytes.Repeat([]byte("x"), size)
	for i := range lines {
		_ = l.SetDeadline(time.Now().Add(patience))
		line := fmt.Sprintf("%s %d %s", r.Nonce, i, pad)
		if _, err := io.WriteString(l, line+"\n"); err != nil {
			return true, err
		}
		if err := l.wantLine(r.Target + " " + line); err != nil {
			return true, err
		}
		if every > 0 && !wait(ctx, every) {
			return true, ctx.Err()
		}
	}
	return true, l.halfClose(fmt.Sprintf("end %s %s %d", r.Target, r.Nonce, lines))
}

// halfClose says that we are done, and wants the target's last word and its end.
func (l *link) halfClose(last string) error {
	c, ok := l.Conn.(*net.TCPConn)
	if !ok {
		return &falseAnswer{"no TCP connection"}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if err := l.wantLine(last); err != nil {
		return err
	}
	switch _, err := l.r.ReadByte(); err {
	case io.EOF:
		return nil
	case nil:
		return &falseAnswer{"bytes behind the end"}
	default:
		return err
	}
}

// line reads one line without its end; with an error, what came of it.
func (l *link) line() (string, error) {
	_ = l.SetReadDeadline(time.Now().Add(patience))
	s, err := l.r.ReadString('\n')
	if s == foreignHello {
		return s, errForeign
	}
	return strings.TrimSuffix(s, "\n"), err
}

func (l *link) wantLine(want string) error {
	got, err := l.line()
	if err == nil && got != want {
		err = &falseAnswer{fmt.Sprintf("line %.100q, want %.100q", got, want)}
	}
	return err
}
