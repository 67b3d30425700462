package listen

import (
	"net"
	"os"
	"sync"
)

// A Reserve holds descriptors with which a connection can be taken in, and served, when there are no others: that of
// somebody who wants to know what is wrong. There are two, because the moment between closing such a connection and
// taking its descriptor back may belong to another. It is for a socket that its owner accepts on. The zero value holds
// none yet.
type Reserve struct {
	mu     sync.Mutex // guards what follows
	held   [2]*os.File
	closed bool
}

// Hold takes the descriptors that are not held, if they are to be had.
func (r *Reserve) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.held {
		if f == nil && !r.closed {
			r.held[i], _ = os.Open(os.DevNull)
		}
	}
}

// Close gives them back for good.
func (r *Reserve) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for range r.held {
		r.spend()
	}
}

// spend gives one back; false when there is none.
func (r *Reserve) spend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.held {
		if f != nil {
			f.Close()
			r.held[i] = nil
			return true
		}
	}
	return false
}

// Accept takes the next connection of s. Without a descriptor one of the reserve is spent, when somebody waits; such a
// connection says so with Last, and is best closed after an answer. What is missing of the reserve is taken back when a
// connection closes.
func (r *Reserve) Accept(s *Socket) (net.Conn, error) {
	c, err := s.ln.Accept()
	if err == nil {
		return &reserved{Conn: c, r: r}, nil
	}
	if !noDescriptor(err) {
		return nil, err
	}
	r.Hold()
	if !s.waiting() || !r.spend() {
		return nil, err
	}
	if c, err = s.ln.Accept(); err != nil {
		r.Hold()
		return nil, err
	}
	return &reserved{Conn: c, r: r, last: true}, nil
}

// reserved is a connection whose descriptor the reserve may be in need of.
type reserved struct {
	net.Conn
	r    *Reserve
	last bool
	once sync.Once
}

func (c *reserved) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.r.Hold)
	return err
}

// NetConn is the connection itself.
func (c *reserved) NetConn() net.Conn { return c.Conn }

// Last reports whether there was no descriptor for another one.
func (c *reserved) Last() bool { return c.last }
