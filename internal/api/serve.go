package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// The clocks and counts of one admin listener. A stream of events sets its own deadlines.
const (
	headerWithin = 10 * time.Second
	readWithin   = 30 * time.Second
	writeWithin  = time.Minute
	idleAtMost   = time.Minute
	maxConns     = 128
	maxHeader    = 16 << 10
)

// serving is what Serve started and Close ends.
type serving struct {
	mu      sync.Mutex // guards what follows
	servers []*http.Server
	closed  bool
}

// Serve answers on l until Close, or until its owner closes l, then returns nil; the listener is closed by then, and
// answers under way were finished. Several listeners may be served at once. At most 128 connections of each are open;
// more wait in the kernel's queue.
func (a *API) Serve(l net.Listener, kind Kind) error {
	srv := &http.Server{
		Handler: a.Handler(kind), ConnContext: ConnContext, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerWithin, ReadTimeout: readWithin, WriteTimeout: writeWithin, IdleTimeout: idleAtMost,
		ErrorLog: slog.NewLogLogger(a.o.Log.Handler(), slog.LevelDebug),
	}
	a.serving.mu.Lock()
	if a.serving.closed {
		a.serving.mu.Unlock()
		return l.Close()
	}
	a.serving.servers = append(a.serving.servers, srv)
	a.serving.mu.Unlock()
	err := srv.Serve(newBounded(l, maxConns))
	if errors.Is(err, http.ErrServerClosed) {
		return nil // Close waits for what is under way
	}
	a.retire(srv)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// retire ends a server whose listener is gone.
func (a *API) retire(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), headerWithin)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close()
	}
	a.serving.mu.Lock()
	defer a.serving.mu.Unlock()
	a.serving.servers = slices.DeleteFunc(a.serving.servers, func(s *http.Server) bool { return s == srv })
}

// Close stops listening, ends the event streams once they have said what happened so far, and waits until every other
// answer is out. When ctx ends first the rest is cut.
func (a *API) Close(ctx context.Context) error {
	a.end()
	a.serving.mu.Lock()
	a.serving.closed = true
	servers := slices.Clone(a.serving.servers)
	a.serving.mu.Unlock()
	var errs []error
	for _, s := range servers {
		if err := s.Shutdown(ctx); err != nil {
			errs = append(errs, err, s.Close())
		}
	}
	return errors.Join(errs...)
}

// bounded is a listener that accepts only while fewer than cap(slots) of its connections are open.
type bounded struct {
	net.Listener
	slots chan struct{}
	once  sync.Once
	gone  chan struct{} // closed by Close
}

func newBounded(l net.Listener, n int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, n), gone: make(chan struct{})}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.gone:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{Conn: c, b: b}, nil
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.gone) })
	return b.Listener.Close()
}

// boundedConn gives its slot back when it is closed.
type boundedConn struct {
	net.Conn
	b    *bounded
	once sync.Once
}

func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.b.slots })
	return err
}

// NetConn is the connection itself, for ConnContext.
func (c *boundedConn) NetConn() net.Conn { return c.Conn }
