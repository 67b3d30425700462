package apps

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	probeFirst = 2 * time.Millisecond // between two probes while nobody listens; it grows with the time that the app has taken
	probeShare = 500                  // to this part of it
	probeEach  = 4                    // times that, once each probe is work for the app
	probeMost  = 500 * time.Millisecond
	probeLimit = 2 * time.Second // for one
	probeHead  = 16 << 10        // of an answer
	probeBody  = 64              // of its body, in a reason
)

// probe asks an instance until it serves.
func (a *app) probe(i *instance) {
	i.phase = probing
	ctx, cancel := context.WithTimeout(a.s.life, i.spec.Ready.Timeout)
	i.cancel = cancel
	q := &probes{a: a, i: i, ready: i.spec.Ready, at: i.at, run: i.run, tap: i.tap}
	q.ready.Path = a.fill(q.ready.Path, i.at)
	q.known = i.adopted && i.ready && q.ready.Log != "" // it has said so to an earlier daemon
	a.aside(func(life context.Context) {
		defer cancel()
		err := q.untilReady(ctx)
		if life.Err() != nil || errors.Is(ctx.Err(), context.Canceled) && err != nil {
			return // it was given up, by its owner
		}
		a.post(func() { a.probed(i, err) })
	})
}

// fill puts what only a start knows into a text of the entry.
func (a *app) fill(text string, at plan.Addr) string {
	if !strings.Contains(text, "${") {
		return text
	}
	port := ""
	if at.Port != 0 {
		port = strconv.Itoa(int(at.Port))
	}
	return strings.NewReplacer("${PORT}", port, "${HOST}", loopback.String(), "${SOCKET}", at.Path, "${QUAYMASTER_URL}", a.s.url(a.name)).Replace(text)
}

// probes are what asks one instance; nothing in it changes.
type probes struct {
	a     *app
	i     *instance
	ready plan.Ready
	at    plan.Addr
	run   run.Instance
	tap   *tap
	known bool
}

// untilReady returns nil when the instance serves, or why it did not in time.
func (q *probes) untilReady(ctx context.Context) error {
	if q.known {
		return nil
	}
	never := errors.New("there was no time to ask")
	last := never
	begun := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w%s", span(q.ready.Timeout), last, q.elsewhere())
		case <-q.tap.said: // nil unless a line is waited for
			return nil
		case <-timer.C:
		}
		err := q.ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			if last == never { //nolint:errorlint // it is this very one
				last = err
			}
			continue
		}
		if last.Error() != err.Error() {
			q.a.post(func() { q.a.waits(q.i, err.Error()) })
		}
		last = err
		pause := max(time.Since(begun)/probeShare, probeFirst)
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			pause *= probeEach
		}
		timer.Reset(min(pause, probeMost))
	}
}

// ask is one probe.
func (q *probes) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if q.ready.Log != "" {
		return fmt.Errorf("it has not said %q", q.ready.Log)
	}
	return itself(ctx, q.run, q.at, q.ready.Path)
}

// itself asks the app itself, also where another program takes connections for it.
func itself(ctx context.Context, r run.Instance, at plan.Addr, path string) error {
	err := askAt(ctx, at, path)
	if b, ok := r.(run.Behind); ok && err == nil && path == "" {
		return b.Answers(ctx)
	}
	return err
}

// askAt asks over HTTP for a path, or only connects where there is none.
func askAt(ctx context.Context, at plan.Addr, path string) error {
	network, address := "tcp", net.JoinHostPort(loopback.String(), strconv.Itoa(int(at.Port)))
	var c net.Conn
	var err error
	if at.Network == plan.Unix {
		network, address = "unix", at.Path
	} else {
		c, err = knock(at.Port)
	}
	if c == nil && err == nil {
		c, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, network, address)
	}
	if err != nil {
		return dialled(err)
	}
	defer func() { _ = c.Close() }()
	if path == "" {
		return nil
	}
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	return get(c, address, path)
}

// dialled is why a connection could not be had, without what the reader knows.
func dialled(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	if t := net.Error(nil); errors.As(err, &t) && t.Timeout() {
		return errors.New("no connection in time")
	}
	return err
}

// get asks for a path and wants 200 to 399.
func get(c net.Conn, host, path string) error {
	if strings.HasPrefix(host, "/") {
		host = "localhost"
	}
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: quaymaster-check\r\nAccept: */*\r\nConnection: close\r\n\r\n", path, host)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, dialled(err))
	}
	head := &io.LimitedReader{R: c, N: probeHead}
	res, err := http.ReadResponse(bufio.NewReader(head), nil)
	switch {
	case err != nil && head.N <= 0:
		return fmt.Errorf("GET %s: the head of the answer is longer than %d bytes", path, probeHead)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("GET %s: the connection was closed without an answer", path)
	case err != nil:
		if t := net.Error(nil); errors.As(err, &t) && t.Timeout() {
			return fmt.Errorf("GET %s: no answer in time", path)
		}
		return fmt.Errorf("GET %s: %w", path, dialled(err))
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 200 && res.StatusCode < 400 {
		return nil
	}
	first := make([]byte, probeBody)
	n, _ := io.ReadFull(res.Body, first) // as much as there is
	text := fmt.Sprintf("GET %s: status %d", path, res.StatusCode)
	if n > 0 {
		text += ": " + printable(first[:n])
	}
	return errors.New(text)
}

// elsewhere says where an instance listens that does not listen where it should.
func (q *probes) elsewhere() string {
	if q.at.Network == plan.Unix {
		return ""
	}
	own, remedy := q.at.Port, "add --port ${PORT} to its command"
	b, behind := q.run.(run.Behind)
	if behind {
		own, remedy = b.Inside(), "set container_port"
	}
	ports, err := q.run.Listening()
	if err != nil || len(ports) == 0 || slices.Contains(ports, own) {
		return ""
	}
	list := make([]string, 0, len(ports))
	for _, p := range ports {
		list = append(list, strconv.Itoa(int(p)))
	}
	return fmt.Sprintf("; %s listens on %s, not on %d: %s", q.a.name, strings.Join(list, ", "), own, remedy)
}

// check begins the health checks of an instance that serves.
func (a *app) check(i *instance) {
	h := i.spec.Health
	if h == nil {
		return
	}
	ctx, cancel := context.WithCancel(a.s.life)
	i.stopHealth()
	i.health = cancel
	at, own, r := i.at, *h, i.run
	own.Path = a.fill(h.Path, at)
	a.aside(func(context.Context) {
		timer := time.NewTimer(h.Interval)
		defer timer.Stop()
		bad := 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			err := healthy(ctx, r, at, &own)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				bad++
			} else {
				bad = 0
			}
			if err == nil || bad >= h.Fall {
				a.post(func() { a.checked(i, err) })
			}
			timer.Reset(h.Interval)
		}
	})
}

func healthy(ctx context.Context, r run.Instance, at plan.Addr, h *plan.AppHealth) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	return itself(ctx, r, at, h.Path)
}
