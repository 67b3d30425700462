package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// certificate is good for 127.0.0.1 and example.com.
var certificate = sync.OnceValue(func() (c struct {
	cert tls.Certificate
	pem  []byte
},
) {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	c.cert = s.TLS.Certificates[0]
	c.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Certificate[0]})
	return c
})

// trusting is a forward to targets that have the certificate.
func trusting(t testing.TB, targets ...string) *wish {
	t.Helper()
	w := forwardTo(targets...)
	w.targetTLS.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(w.targetTLS.CAFile, certificate().pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// secureTarget is newTarget over TLS.
func secureTarget(t testing.TB, h http.HandlerFunc) *target {
	t.Helper()
	tg := newTarget(t, h)
	plain := tg.Server
	tg.Server = httptest.NewUnstartedServer(plain.Config.Handler)
	tg.TLS = &tls.Config{Certificates: []tls.Certificate{certificate().cert}}
	tg.StartTLS()
	t.Cleanup(tg.Close)
	plain.Close()
	return tg
}

func TestT12_ABadCertificateOfATargetIsA502WithItsReason(t *testing.T) {
	tg := secureTarget(t, nil)
	w := trusting(t, tg.URL)
	w.targetTLS.ServerName = "other.test"
	h := build(t, w)
	a := h.ask("GET", "/")
	rec := h.record()
	if a.StatusCode != 502 || rec.Status != 502 || rec.Reason != "tls" {
		t.Errorf("%d, %+v", a.StatusCode, rec)
	}
	if !strings.Contains(rec.Detail, "is for example.com") || !strings.Contains(rec.Detail, "not for other.test") || !strings.Contains(rec.Detail, "target_tls.server_name") {
		t.Errorf("the log says %q", rec.Detail)
	}
	if strings.Contains(a.body, "example.com") || strings.Contains(a.body, "server_name") {
		t.Errorf("the client is told %q", a.body)
	}
	if reason := h.pools.Status()[0].Targets[0].Reason; !strings.Contains(reason, "not for other.test") {
		t.Errorf("status says %q", reason)
	}
	if n := len(tg.requests()); n != 0 {
		t.Errorf("%d requests got through", n)
	}
}

// Nothing of a request was sent to a target whose handshake failed, so that any request may go to another one.
func TestForwardTriesAnotherTargetAfterAFailedHandshake(t *testing.T) {
	plain := newTarget(t, nil)
	good := secureTarget(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(append([]byte("good"), body...))
	})
	w := trusting(t, "https://"+strings.TrimPrefix(plain.URL, "http://"), good.URL)
	w.action = plan.Forward{Upstream: "api", Retries: plan.Retries{Attempts: 2, Connect: true, Budget: 1}}
	h := build(t, w)
	retried := 0
	for range 4 {
		con := h.dial()
		con.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
		if a := con.answer("POST"); a.body != "goodhi" {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		retried += h.record().Retries
	}
	if retried == 0 {
		t.Error("the other target was never tried")
	}
	if n := len(plain.requests()); n != 0 {
		t.Errorf("%d requests went out in the clear", n)
	}
}

// A target of TLS 1.3 refuses a client certificate after the handshake is over for us.
func TestT12_ATargetThatWantsACertificateSaysSo(t *testing.T) {
	tg := httptest.NewUnstartedServer(http.NotFoundHandler())
	tg.TLS = &tls.Config{Certificates: []tls.Certificate{certificate().cert}, ClientAuth: tls.RequireAnyClientCert}
	tg.StartTLS()
	t.Cleanup(tg.Close)
	h := build(t, trusting(t, tg.URL))
	for _, method := range []string{"GET", "POST"} {
		fields := ""
		if method == "POST" {
			fields = "Content-Length: 2\r\n\r\nhi"
		}
		c := h.dial()
		c.say(method + " / HTTP/1.1\r\nHost: a\r\n" + fields)
		if method == "GET" {
			c.say("\r\n")
		}
		a := c.answer(method)
		rec := h.record()
		if a.StatusCode != 502 || rec.Reason != "tls" || !strings.Contains(rec.Detail, "certificate required") || !strings.Contains(rec.Detail, "client_cert_file") {
			t.Errorf("%s: %d, %+v", method, a.StatusCode, rec)
		}
	}
}

func TestForwardSaysThatClientsSpokeTLS(t *testing.T) {
	for _, secure := range []bool{false, true} {
		want := map[bool]string{false: "http", true: "https"}[secure]
		tg := newTarget(t, nil)
		w := forwardTo(tg.URL)
		w.clientTLS = secure
		w.balance.StickyCookie = "qm"
		w.action = plan.Forward{Upstream: "api", RequestHeaders: plan.HeaderRules{Set: []plan.Header{{Name: "X-Scheme", Value: "{scheme}"}}}}
		h := build(t, w)
		a := h.ask("GET", "/", "X-Forwarded-Proto: gopher")
		r := tg.last(t)
		if r.Header.Get("X-Forwarded-Proto") != want || r.Header.Get("X-Scheme") != want {
			t.Errorf("the target was told %v", r.Header)
		}
		if cookie := a.Header.Get("Set-Cookie"); cookie == "" || strings.Contains(cookie, "; Secure") != secure {
			t.Errorf("%s: cookie %q", want, cookie)
		}

		h = build(t, &wish{action: plan.Redirect{To: "{scheme}://{host}{path}"}, clientTLS: secure})
		if a := h.ask("GET", "/x"); a.Header.Get("Location") != want+"://www.example.com/x" {
			t.Errorf("redirected to %q", a.Header.Get("Location"))
		}
	}
}

// onEachSide runs f for clients and targets with and without TLS.
func onEachSide(t *testing.T, f func(t *testing.T, client, target bool)) {
	for _, client := range []bool{false, true} {
		for _, target := range []bool{false, true} {
			t.Run(map[bool]string{false: "plain", true: "tls"}[client]+" to "+map[bool]string{false: "plain", true: "tls"}[target], func(t *testing.T) {
				f(t, client, target)
			})
		}
	}
}

func TestLargeBodiesThroughTLS(t *testing.T) {
	onEachSide(t, func(t *testing.T, client, target bool) {
		echo := func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			if r.ContentLength > 0 {
				w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
			}
			_, _ = io.Copy(w, r.Body)
		}
		start := newTarget
		if target {
			start = secureTarget
		}
		w := trusting(t, start(t, echo).URL)
		w.clientTLS = client
		h := build(t, w)
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		url := "http://" + h.addr
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		if client {
			url = "https://" + h.addr
		}
		for _, chunked := range []bool{false, true} {
			req, _ := http.NewRequest("POST", url, bytes.NewReader(data))
			if chunked {
				req.ContentLength = -1
			}
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("chunked %v: %d bytes of %d, %v", chunked, len(got), len(data), err)
			}
			if rec := h.record(); rec.In != int64(len(data)) || rec.Out != int64(len(data)) || rec.Reason != "" {
				t.Fatalf("record %+v", rec)
			}
		}
		tr.CloseIdleConnections()
	})
}

func TestC11_UpgradedConnectionsThroughTLS(t *testing.T) {
	serve := func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil || !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
			return
		}
		_, _ = io.WriteString(c, switched+"early")
		_, _ = io.Copy(c, r) // until the client is done
		_, _ = io.WriteString(c, "bye")
	}
	onEachSide(t, func(t *testing.T, client, target bool) {
		start := rawTarget
		if target {
			start = rawTLSTarget
		}
		w := trusting(t, start(t, serve))
		w.clientTLS, w.timeouts.Idle = client, time.Minute
		h := build(t, w)
		c := h.dial()
		c.say(hello)
		if res := c.head("GET"); res.StatusCode != 101 {
			t.Fatal(res.StatusCode)
		}
		c.say("ping")
		got := make([]byte, len("earlyping"))
		if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "earlyping" {
			t.Fatalf("%q %v", got, err)
		}
		_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		if rest, err := io.ReadAll(c.r); string(rest) != "bye" || err != nil {
			t.Fatalf("after the half-close came %q, %v", rest, err)
		}
		if rec := h.record(); rec.Status != 101 || rec.In != 4 || rec.Out != 12 || rec.Reason != "" {
			t.Fatalf("record %+v", rec)
		}
	})
}

func TestC11_UpgradedConnectionsThroughTLSAreToldToGoAway(t *testing.T) {
	onEachSide(t, func(t *testing.T, client, target bool) {
		addr := switching(t, switched)
		if target {
			addr = rawTLSTarget(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err == nil {
					_, _ = io.WriteString(c, switched)
					_, _ = io.Copy(c, r)
				}
			})
		}
		w := trusting(t, addr)
		w.clientTLS, w.timeouts.Idle = client, time.Minute
		h := build(t, w)
		conns := make(chan *wire.ConnInfo, 1)
		h.before = func(ex *wire.Exchange) { conns <- ex.Conn }
		c := h.dial()
		c.say(hello)
		c.head("GET")
		info := <-conns
		var bye *func()
		for end := time.Now().Add(10 * time.Second); bye == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
			bye = info.Farewell.Load()
		}
		if bye == nil {
			t.Fatal("nothing says farewell")
		}
		(*bye)()
		rest, err := io.ReadAll(c.r)
		if !bytes.Equal(rest, []byte{0x88, 2, 1001 >> 8, 1001 & 0xff}) || err != nil {
			t.Errorf("the client got %x, %v", rest, err)
		}
	})
}

func TestForwardToTLSAllocatesLittle(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	w := trusting(t, rawTLSTarget(t, func(c net.Conn, r *bufio.Reader) {
		out := []byte(plainAnswer)
		_ = c.SetDeadline(time.Time{})
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) > 2 {
				continue
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}))
	h := build(t, w)
	h.silent = true
	round := h.rounds(plainRequest)
	for range 100 {
		round()
	}
	// crypto/tls allocates one for each record that is read, the target's own among them.
	n := testing.AllocsPerRun(2000, round)
	t.Logf("%v allocations an exchange", n)
	if n > 3 {
		t.Errorf("%v allocations an exchange", n)
	}
}
