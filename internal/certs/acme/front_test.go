package acme

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A front is two ports at which a CA comes to validate, as the edge would have them.
type front struct {
	http, tls net.Listener
	issuer    atomic.Pointer[Issuer]

	mu     sync.Mutex
	closed bool     // http answers nobody
	asked  func()   // called while a token is being answered
	paths  []string // that were tokens
	names  []string // that were orders
}

func newFront(t testing.TB) *front {
	t.Helper()
	f := &front{http: listen(t), tls: listen(t)}
	plain := &http.Server{Handler: f}
	secure := &http.Server{TLSConfig: &tls.Config{NextProtos: []string{plan.ALPNProtocol}, GetCertificate: f.challenge}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	var over sync.WaitGroup
	over.Go(func() { _ = plain.Serve(f.http) })
	over.Go(func() { _ = secure.ServeTLS(f.tls, "", "") })
	t.Cleanup(func() {
		_ = plain.Close()
		_ = secure.Close()
		over.Wait()
	})
	return f
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addrOf(l net.Listener) plan.Addr {
	return plan.TCPAddr(netip.MustParseAddr("127.0.0.1"), uint16(portOf(l)))
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := f.issuer.Load()
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	if closed || a == nil || !a.IsToken([]byte(r.Host), []byte(r.URL.Path)) {
		_, _ = io.WriteString(w, "the user's own route")
		return
	}
	f.mu.Lock()
	f.paths = append(f.paths, r.URL.Path)
	asked := f.asked
	f.mu.Unlock()
	if asked != nil {
		asked()
	}
	a.Handler().ServeHTTP(w, r)
}

func (f *front) challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	a := f.issuer.Load()
	if slices.Contains(hello.SupportedProtos, plan.ALPNProtocol) && a.IsOrder(hello.ServerName) {
		f.mu.Lock()
		f.names = append(f.names, hello.ServerName)
		f.mu.Unlock()
		return a.Challenge(hello)
	}
	return nil, ErrUnknown
}

// halt makes the first request for a token wait: reached is closed when it has come, and it is answered when free is.
func (f *front) halt() (reached, free chan struct{}) {
	reached, free = make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = func() {
		if first.CompareAndSwap(false, true) {
			close(reached)
			<-free
		}
	}
	return reached, free
}

// seen are the paths and names that were answered.
func (f *front) seen() (paths, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.paths), slices.Clone(f.names)
}
