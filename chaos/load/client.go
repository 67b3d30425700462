//go:build linux

package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"
)

// link is one connection of a client, and what must be true of the exchanges on it.
type link struct {
	net.Conn
	r       *bufio.Reader
	opened  int64
	claimed string // the client address that we told in a PROXY header, "" without one
	used    bool
}

// dial opens a connection to an endpoint and sends the PROXY header that its port wants.
func dial(ctx context.Context, rng *rand.Rand, e Endpoint) (*link, error) {
	l := &link{opened: time.Now().UnixNano()}
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", e.Port))
	if err != nil {
		return l, err
	}
	l.Conn, l.r = c, bufio.NewReader(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	if e.Proxy != 0 {
		from := &net.TCPAddr{IP: net.IPv4(10, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(1+rng.IntN(250))), Port: 1024 + rng.IntN(60000)}
		l.claimed = from.String()
		h := proxyproto.HeaderProxyFromAddrs(byte(e.Proxy), from, c.RemoteAddr())
		if _, err := h.WriteTo(c); err != nil {
			_ = c.Close()
			return l, err
		}
	}
	return l, nil
}

// close ends the connection, if there is one.
func (l *link) close() {
	if l.Conn != nil {
		_ = l.Conn.Close()
	}
}

// who is the address that the target must know us by.
func (l *link) who() string {
	if l.claimed != "" {
		return l.claimed
	}
	return l.LocalAddr().String()
}

// secure starts TLS. The certificate names the target that we were led to.
func (l *link) secure(name string) error {
	t := tls.Client(l.Conn, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // who answers is judged afterwards
	if err := t.Handshake(); err != nil {
		var odd tls.RecordHeaderError
		if errors.As(err, &odd) && bytes.HasPrefix([]byte(foreignHello), odd.RecordHeader[:]) {
			return errForeign
		}
		return err
	}
	l.Conn, l.r = t, bufio.NewReader(t)
	return nil
}

// alertOf tells the alerts that stand for a missing route and for a target that cannot be had.
func alertOf(err error) (Outcome, bool) {
	switch {
	case strings.Contains(err.Error(), "unrecognized name"):
		return Alert, true
	case strings.Contains(err.Error(), "internal error"):
		return Unavailable, true
	}
	return 0, false
}

// ask is one request of an HTTP client.
type ask struct {
	method, path string
	body         func(w io.Writer) error // nil = none; written beside the reading of the answer
	size         int64                   // of the body; -1 = chunked
	last         bool                    // ask for Connection: close
	read         func(body io.Reader) error
}

// exchange sends one request and reads its answer to the end. r has endpoint and nonce; outcome, target and detail are
// filled in. It reports whether the connection can carry another.
func (l *link) exchange(a *ask, r *Report) (again bool) {
	_ = l.SetDeadline(time.Now().Add(patience))
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n", a.method, a.path, r.Endpoint.Name, headNonce, r.Nonce)
	switch {
	case a.body != nil && a.size >= 0:
		fmt.Fprintf(&head, "Content-Length: %d\r\n", a.size)
	case a.body != nil:
		head.WriteString("Transfer-Encoding: chunked\r\n")
	}
	if a.last {
		head.WriteString("Connection: close\r\n")
	}
	head.WriteString("\r\n")
	sent := make(chan error, 1)
	if a.body == nil {
		_, err := l.Write(head.Bytes())
		sent <- err
	} else {
		go func() { sent <- l.upload(head.Bytes(), a) }()
	}
	res, begun, err := l.answer(a.method)
	if err == nil {
		again, err = l.judge(a, res, r)
		begun = true
	}
	if err != nil { // a writer that still waits shall not outlive the exchange
		_ = l.SetDeadline(time.Unix(1, 0))
	}
	werr := <-sent
	if err != nil {
		r.fail(err, begun)
		return false
	}
	return again && werr == nil && !res.Close && !a.last
}

// upload writes head and body. An error is told by what the answer is, or by there being none.
func (l *link) upload(head []byte, a *ask) error {
	if _, err := l.Write(head); err != nil {
		return err
	}
	if a.size >= 0 {
		return a.body(l.Conn)
	}
	if err := a.body(chunks{l.Conn}); err != nil {
		return err
	}
	_, err := io.WriteString(l.Conn, "0\r\n\r\n")
	return err
}

// chunks writes each piece as a chunk.
type chunks struct{ w io.Writer }

func (c chunks) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b := fmt.Appendf(nil, "%x\r\n", len(p))
	b = append(append(b, p...), "\r\n"...)
	_, err := c.w.Write(b)
	return len(p), err
}

// answer reads the head of an answer. begun says that a byte of it came.
func (l *link) answer(method string) (res *http.Response, begun bool, err error) {
	b, err := l.r.Peek(len(foreignHello))
	if len(b) > 0 && bytes.HasPrefix([]byte(foreignHello), b) {
		return nil, true, errForeign
	}
	if err != nil {
		return nil, len(b) > 0, err
	}
	res, err = http.ReadResponse(l.r, &http.Request{Method: method})
	return res, true, err
}

// judge reads the body and finds out who answered what.
func (l *link) judge(a *ask, res *http.Response, r *Report) (again bool, err error) {
	defer res.Body.Close()
	r.Target = res.Header.Get(headTarget)
	if r.Target == "" {
		page, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		r.own(res.StatusCode, page)
		return r.Outcome == NotFound, err
	}
	if why := l.falseHead(res, r); why != "" {
		return false, &falseAnswer{why}
	}
	if err := a.read(res.Body); err != nil {
		return false, err
	}
	_ = l.SetReadDeadline(time.Now().Add(patience))
	if n, err := io.Copy(io.Discard, res.Body); n > 0 || err != nil {
		return false, errors.Join(err, &falseAnswer{fmt.Sprintf("%d bytes behind the answer", n)})
	}
	r.Outcome = Answered
	return true, nil
}

// own sorts a page that no target wrote.
func (r *Report) own(status int, page []byte) {
	switch status {
	case http.StatusNotFound:
		r.Outcome = NotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		r.Outcome = Unavailable
	default:
		r.Outcome = Wrong
	}
	r.Detail = fmt.Sprintf("%d %.200s", status, page)
}

// falseHead says what in the head of a target's answer is not ours.
func (l *link) falseHead(res *http.Response, r *Report) string {
	h := res.Header
	seen, _, _ := net.SplitHostPort(l.who())
	r.Proxied = h.Get(headProxied) != ""
	switch {
	case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusSwitchingProtocols:
		return "status " + res.Status
	case h.Get(headNonce) != r.Nonce:
		return "the nonce of another request: " + h.Get(headNonce)
	case h.Get(headHost) != r.Endpoint.Name:
		return "the target saw the host " + h.Get(headHost)
	case !r.Endpoint.Class.tunnelled() && h.Get(headSeen) != seen:
		return fmt.Sprintf("the target was told the client %s, it is %s", h.Get(headSeen), seen)
	case r.Proxied && h.Get(headProxied) != l.who():
		return fmt.Sprintf("the PROXY header says %s, the client is %s", h.Get(headProxied), l.who())
	}
	if t, ok := l.Conn.(*tls.Conn); ok {
		if cn := t.ConnectionState().PeerCertificates[0].Subject.CommonName; cn != r.Target {
			return fmt.Sprintf("the certificate of %s, the answer of %s", cn, r.Target)
		}
	}
	return ""
}

// fail sorts an error.
func (r *Report) fail(err error, begun bool) {
	r.Detail = err.Error()
	var mine *falseAnswer
	switch {
	case errors.As(err, &mine) && !isEnd(err):
		r.Outcome = Wrong
	default:
		r.Outcome = outcomeOf(err, begun)
	}
	if o, ok := alertOf(err); ok && r.Endpoint.Class == TLS && !begun {
		r.Outcome = o
	}
}

// isEnd reports whether err is joined with, or is, the end of a connection.
func isEnd(err error) bool {
	o := outcomeOf(err, true)
	return o == Cut || o == TimedOut
}
