// Package answer holds what a CA may ask for at this moment: the tokens of http-01 (RFC 8555 section 8.3) and the names of
// tls-alpn-01 (RFC 8737).
//
// It promises that whoever asks whether something is there waits for nobody and costs no memory, that one validation ends
// without a trace and without disturbing another, and that what was never put in is not answered. It never listens.
package answer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// Path is where a CA looks for tokens.
const Path = "/.well-known/acme-challenge/"

// A Table is what is to be answered. Its zero value answers nothing.
type Table struct {
	mu  sync.Mutex // taken by those who change what is there
	now atomic.Pointer[view]
}

// view is never changed.
type view struct {
	tokens map[string]string // token -> key authorization
	orders map[string]*tls.Certificate
}

// Token answers token with text until end is called.
func (t *Table) Token(token, text string) (end func()) {
	t.change(func(v *view) { v.tokens[token] = text })
	return sync.OnceFunc(func() { t.change(func(v *view) { delete(v.tokens, token) }) })
}

// Order answers handshakes for name, in lower case, with c until end is called.
func (t *Table) Order(name string, c *tls.Certificate) (end func()) {
	t.change(func(v *view) { v.orders[name] = c })
	return sync.OnceFunc(func() {
		t.change(func(v *view) {
			if v.orders[name] == c {
				delete(v.orders, name)
			}
		})
	})
}

func (t *Table) change(f func(*view)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := &view{tokens: map[string]string{}, orders: map[string]*tls.Certificate{}}
	if v := t.now.Load(); v != nil {
		maps.Copy(next.tokens, v.tokens)
		maps.Copy(next.orders, v.orders)
	}
	f(next)
	t.now.Store(next)
}

// Len is the number of tokens and names.
func (t *Table) Len() int {
	if v := t.now.Load(); v != nil {
		return len(v.tokens) + len(v.orders)
	}
	return 0
}

// IsToken reports whether path is that of a token. The host does not count: a token cannot be guessed, its text is no
// secret, and a CA that follows a redirect asks for it under another name.
func (t *Table) IsToken(path []byte) bool {
	v := t.now.Load()
	if v == nil || len(v.tokens) == 0 {
		return false
	}
	token, ok := bytes.CutPrefix(path, []byte(Path))
	if !ok {
		return false
	}
	_, ok = v.tokens[string(token)]
	return ok
}

// IsOrder reports whether name is to be answered.
func (t *Table) IsOrder(name string) bool {
	v := t.now.Load()
	if v == nil || len(v.orders) == 0 {
		return false
	}
	_, ok := v.orders[name]
	return ok
}

// ErrUnknown says that nothing is validated under this name.
var ErrUnknown = errors.New("no order of ours is being validated under this name")

// Challenge is the certificate that answers a handshake.
func (t *Table) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if v := t.now.Load(); v != nil {
		if c := v.orders[strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")]; c != nil {
			return c, nil
		}
	}
	return nil, ErrUnknown
}

// ServeHTTP answers a token, and anything else with 404.
func (t *Table) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if token, ok := strings.CutPrefix(r.URL.Path, Path); ok {
		if v := t.now.Load(); v != nil {
			if text, ok := v.tokens[token]; ok {
				h := w.Header()
				h.Set("Content-Type", "text/plain; charset=utf-8")
				h.Set("Cache-Control", "no-store")
				_, _ = io.WriteString(w, text)
				return
			}
		}
	}
	http.NotFound(w, r)
}
