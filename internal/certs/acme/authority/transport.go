package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	requestTime = 45 * time.Second // one request, with its answer
	maxAnswer   = 1 << 20          // bytes of an answer
	maxWait     = 7 * 24 * time.Hour
)

// What one order may take: a CA that is slow is looked at every 250 ms for minutes. Its certificate is kept in memory until
// all of it is there, with what links to it.
var (
	orderBudget = budget{requests: 10_000, bytes: 32 << 20}
	chainBudget = budget{requests: 64, bytes: 2 << 20}
)

// transport bounds what a CA can send, and keeps what the library drops: Retry-After.
type transport struct {
	next http.RoundTripper
	now  func() time.Time
}

func newTransport(roots *x509.CertPool, now func() time.Time) *transport {
	return &transport{now: now, next: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    8,
		MaxConnsPerHost:        16,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
	}}
}

// CloseIdleConnections is found by http.Client.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip sends r, and notes on its context's ear what came back.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	purse, _ := r.Context().Value(purseKey{}).(*purse)
	if err := purse.spend(1, 0); err != nil {
		return nil, err
	}
	resp, err := t.next.RoundTrip(r)
	e, _ := r.Context().Value(earKey{}).(*ear)
	if err != nil {
		e.hear(0, 0)
		return nil, err
	}
	e.hear(resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), t.now()))
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxAnswer, purse: purse}
	return resp, nil
}

// retryAfter reads a Retry-After field (RFC 9110 section 10.2.3); 0 when there is none that means anything.
func retryAfter(text string, now time.Time) time.Duration {
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return min(max(time.Duration(min(n, int64(maxWait/time.Second)))*time.Second, 0), maxWait)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxWait)
}

// bounded ends with an error where the other side goes on too long.
type bounded struct {
	io.ReadCloser
	left  int64
	purse *purse
}

var (
	errTooLarge = errors.New("the answer is larger than 1 MiB")
	errTooMuch  = errors.New("the CA goes on and on: the order is given up")
)

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return n, errTooLarge
	}
	if over := b.purse.spend(0, n); over != nil {
		return n, over
	}
	return n, err
}

// A budget is how much may be asked of a CA, and how much it may say.
type budget struct{ requests, bytes int }

type purseKey struct{}

// A purse is what is left of a budget.
type purse struct {
	mu   sync.Mutex
	left budget
	over context.CancelCauseFunc
}

// within gives all requests under ctx one budget. When it is used up ctx ends, and its cause is errTooMuch.
func within(ctx context.Context, b budget) (context.Context, context.CancelFunc) {
	ctx, over := context.WithCancelCause(ctx)
	return context.WithValue(ctx, purseKey{}, &purse{left: b, over: over}), func() { over(nil) }
}

func (p *purse) spend(requests, bytes int) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left.requests -= requests
	p.left.bytes -= bytes
	if p.left.requests < 0 || p.left.bytes < 0 {
		p.over(errTooMuch)
		return errTooMuch
	}
	return nil
}

type earKey struct{}

// An ear remembers the newest answer to any request made under its context.
type ear struct {
	mu     sync.Mutex
	status int // 0: none came
	wait   time.Duration
}

// listen gives ctx an ear.
func listen(ctx context.Context) (context.Context, *ear) {
	e := &ear{}
	return context.WithValue(ctx, earKey{}, e), e
}

func (e *ear) hear(status int, wait time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status, e.wait = status, wait
}

func (e *ear) last() (status int, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status, e.wait
}

// here answers one URL from memory.
type here struct {
	path string
	body []byte
	next http.RoundTripper
}

// RoundTrip answers, or passes on.
func (h *here) RoundTrip(r *http.Request) (*http.Response, error) {
	u := *r.URL
	u.Fragment = ""
	if r.Method != http.MethodGet || u.String() != h.path {
		return h.next.RoundTrip(r)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(h.body)),
		Body: io.NopCloser(bytes.NewReader(h.body)), Request: r,
	}, nil
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
