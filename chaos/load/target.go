//go:build linux

package load

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/pires/go-proxyproto"
)

// A Target answers whatever is sent to it with its identity and the nonce of the request, and writes every nonce to its
// journal before it answers. HTTP/1.1, TLS with HTTP/1.1 inside, and the raw protocol share one port, told apart by
// the first byte; a PROXY header may stand before any of them.
type Target struct {
	ID      string
	Journal *os.File // opened with O_APPEND; one line a request
	// Lie makes every nth answer carry the identity of another target. 0: never. It is there to see the judge at work.
	Lie int

	tls   *tls.Config
	queue chan net.Conn // what turned out to speak HTTP
	lies  atomic.Int64
}

// Serve answers on shared, and on first as a server that speaks first, until shared is closed.
func (t *Target) Serve(shared, first net.Listener) error {
	cert, err := selfSigned(t.ID)
	if err != nil {
		return err
	}
	t.tls = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	t.queue = make(chan net.Conn)
	srv := &http.Server{Handler: t, ConnContext: connContext, ReadHeaderTimeout: patience}
	go func() { _ = srv.Serve(&queued{t.queue, shared.Addr()}) }()
	go acceptEach(first, func(c net.Conn) {
		defer c.Close()
		k := newServed(c)
		if _, err := fmt.Fprintf(c, "hi %s\n", t.ID); err == nil && k.header() == nil {
			t.raw(k)
		}
	})
	acceptEach(shared, t.sort)
	return nil
}

func acceptEach(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go f(c)
	}
}

// sort finds out what a client speaks.
func (t *Target) sort(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(10 * patience)) // a pooled connection may be silent for long
	k := newServed(c)
	if err := k.header(); err != nil {
		_ = c.Close()
		return
	}
	b, err := k.r.Peek(1)
	switch {
	case err != nil:
		_ = c.Close()
	case b[0] == rawHello[0]:
		t.raw(k)
		_ = c.Close()
	case b[0] == 0x16:
		t.queue <- tls.Server(k, t.tls)
	default:
		t.queue <- k
	}
}

// served is a connection whose first bytes may have been read.
type served struct {
	net.Conn
	r       *bufio.Reader
	proxied string // the client address of a PROXY header, "" without one
}

func newServed(c net.Conn) *served { return &served{Conn: c, r: bufio.NewReader(c)} }

func (s *served) Read(p []byte) (int, error) { return s.r.Read(p) }

// header takes a PROXY header off the connection if one is there. Every client says at least six bytes.
func (s *served) header() error {
	b, err := s.r.Peek(1)
	if err != nil {
		return err
	}
	if b[0] == 'P' {
		if b, err = s.r.Peek(6); err != nil || string(b) != "PROXY " {
			return err
		}
	} else if b[0] != proxyproto.SIGV2[0] {
		return nil
	}
	h, err := proxyproto.Read(s.r)
	if err != nil {
		return err
	}
	s.proxied = h.SourceAddr.String()
	return nil
}

// queued is a listener that yields the connections of a channel.
type queued struct {
	from chan net.Conn
	addr net.Addr
}

func (q *queued) Accept() (net.Conn, error) { return <-q.from, nil }
func (q *queued) Close() error              { return nil }
func (q *queued) Addr() net.Addr            { return q.addr }

type proxiedKey struct{}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if s, ok := c.(*tls.Conn); ok {
		c = s.NetConn()
	}
	if s, ok := c.(*served); ok {
		return context.WithValue(ctx, proxiedKey{}, s.proxied)
	}
	return ctx
}

// note writes a request down before anything is answered. It survives the end of the process.
func (t *Target) note(nonce string) error {
	_, err := fmt.Fprintf(t.Journal, "%s %s %d\n", nonce, t.ID, time.Now().UnixNano())
	return err
}

// name is the target's identity, unless it lies.
func (t *Target) name() string {
	if t.Lie > 0 && t.lies.Add(1)%int64(t.Lie) == 0 {
		return t.ID + "-impostor"
	}
	return t.ID
}

// The headers of an exchange between client and target.
const (
	headNonce   = "X-Nonce"
	headTarget  = "X-Target"
	headHost    = "X-Host"        // the Host that the target saw
	headSeen    = "X-Seen-For"    // the X-Forwarded-For that the target saw
	headProxied = "X-Proxied-For" // the client of a PROXY header
)

// ServeHTTP answers one request.
func (t *Target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	nonce := r.Header.Get(headNonce)
	if err := t.note(nonce); err != nil {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h.Set(headNonce, nonce)
	h.Set(headTarget, t.name())
	h.Set(headHost, r.Host)
	h.Set(headSeen, r.Header.Get("X-Forwarded-For"))
	proxied, _ := r.Context().Value(proxiedKey{}).(string)
	h.Set(headProxied, proxied)
	switch r.URL.Path {
	case "/sum":
		n, digest, err := sum(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %d %x\n", t.ID, nonce, n, digest)
	case "/mirror":
		t.mirror(w, r)
	case "/download":
		t.download(w, r, nonce)
	case "/events":
		t.events(w, r, nonce)
	case "/ws":
		t.websocket(w, r, nonce)
	default:
		fmt.Fprintf(w, "%s %s\n", t.ID, nonce)
	}
}

// mirror sends a body back while it comes.
func (t *Target) mirror(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = rc.Flush()
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // an answer that looks whole must be whole
		}
	}
}

// steps reads how many pieces an answer has, and how far apart they are.
func steps(r *http.Request) (n, size int, every time.Duration) {
	q := r.URL.Query()
	n, _ = strconv.Atoi(q.Get("n"))
	size, _ = strconv.Atoi(q.Get("size"))
	ms, _ := strconv.Atoi(q.Get("ms"))
	return n, size, time.Duration(ms) * time.Millisecond
}

// wait passes time, unless the client leaves.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *Target) download(w http.ResponseWriter, r *http.Request, nonce string) {
	n, size, every := steps(r)
	w.Header().Set("Content-Length", strconv.Itoa(n*size))
	src := &pattern{nonce: nonce}
	for range n {
		if _, err := io.CopyN(w, src, int64(size)); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		if !wait(r.Context(), every) {
			return
		}
	}
}

func (t *Target) events(w http.ResponseWriter, r *http.Request, nonce string) {
	n, _, every := steps(r)
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range n {
		if _, err := fmt.Fprintf(w, "data: %s %d\n\n", nonce, i); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		if !wait(r.Context(), every) {
			return
		}
	}
}

func (t *Target) websocket(w http.ResponseWriter, r *http.Request, nonce string) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	ctx := context.Background()
	for {
		read, stop := context.WithTimeout(ctx, patience)
		kind, text, err := c.Read(read)
		stop()
		if err != nil {
			return
		}
		write, stop := context.WithTimeout(ctx, patience)
		err = c.Write(write, kind, fmt.Appendf(nil, "%s %s %s", t.ID, nonce, text))
		stop()
		if err != nil {
			return
		}
	}
}

// rawHello begins the raw protocol: "\x01raw NONCE\n". The target says "ID NONCE PROXIED\n", sends each line back with
// its own identity before it, and after the client's FIN says "end ID NONCE LINES\n" and closes.
const rawHello = "\x01raw "

func (t *Target) raw(k *served) {
	_ = k.SetDeadline(time.Now().Add(patience))
	hello, err := k.r.ReadString('\n')
	if err != nil {
		return
	}
	nonce := strings.TrimSuffix(strings.TrimPrefix(hello, rawHello), "\n")
	if t.note(nonce) != nil {
		return
	}
	if _, err := fmt.Fprintf(k, "%s %s %s\n", t.name(), nonce, k.proxied); err != nil {
		return
	}
	lines := 0
	for {
		_ = k.SetDeadline(time.Now().Add(patience))
		line, err := k.r.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			_, _ = fmt.Fprintf(k, "end %s %s %d\n", t.ID, nonce, lines)
			return
		}
		if err != nil {
			return
		}
		lines++
		if _, err := io.WriteString(k, t.ID+" "+line); err != nil {
			return
		}
	}
}

// selfSigned is a certificate for whatever name is asked for; clients look at its common name.
func selfSigned(id string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: id},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
