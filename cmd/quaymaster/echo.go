package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
)

// echoBody is how much of a request body the answer repeats.
const echoBody = 64 << 10

func (s *shell) echoVerb() *cobra.Command {
	var e echo
	c := verb(
		"echo [ADDR]", "Serve HTTP that answers with what it received. Needs no daemon", "quaymaster echo 127.0.0.1:3000 --name web1",
		cobra.MaximumNArgs(1),
		func(ctx context.Context, args []string) error {
			addr := echoAddr(os.Getenv)
			if len(args) > 0 {
				addr = args[0]
			}
			return s.echo(ctx, addr, &e)
		},
	)
	c.Long = c.Short + `.

The answer is text whose first line is "quaymaster echo" and whose rest is a JSON
object; with "Accept: application/json" it is that object alone. A WebSocket gets
its own messages back, at any path.

Without ADDR it listens where an app is to: on $PORT of $HOST, else on any free
port of 127.0.0.1.`
	c.Flags().BoolVar(&e.tls, "tls", false, "serve HTTPS with a certificate made for this run")
	c.Flags().StringVar(&e.name, "name", "", "say this name in every answer, to tell several apart")
	return c
}

// echoAddr is where an app of this environment is to listen. HOST counts only with PORT, and as an address: some shells
// set it to the name of the machine.
func echoAddr(env func(string) string) string {
	host, port := "127.0.0.1", "0"
	if p := env("PORT"); p != "" {
		port = p
		if ip, err := netip.ParseAddr(env("HOST")); err == nil {
			host = ip.String()
		}
	}
	return net.JoinHostPort(host, port)
}

// echo answers with what it received.
type echo struct {
	name string
	tls  bool
	over context.Context // ends WebSockets, which a server's Shutdown leaves open
}

// received is what a request looked like from here.
type received struct {
	Name       string              `json:"name,omitempty"`
	Method     string              `json:"method"`
	Target     string              `json:"target"`
	Host       string              `json:"host"`
	Proto      string              `json:"proto"`
	Headers    map[string][]string `json:"headers"`
	BodyLength int64               `json:"body_length"`
	Body       string              `json:"body"` // its first 64 KiB
	Trailers   map[string][]string `json:"trailers,omitempty"`
	RemoteAddr string              `json:"remote_addr"`
	ServerName string              `json:"server_name,omitempty"` // of the TLS hello
}

// echo serves until ctx ends.
func (s *shell) echo(ctx context.Context, addr string, e *echo) error {
	if !strings.Contains(addr, ":") {
		addr = "127.0.0.1:" + addr
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; name a free address, or 127.0.0.1:0 for any", addr, err)
	}
	scheme := "http"
	srv := &http.Server{
		Handler: e, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	e.over = ctx
	if e.tls {
		scheme = "https"
		cert, err := ownCertificate()
		if err != nil {
			_ = l.Close()
			return fmt.Errorf("cannot make a certificate: %w", err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if s.json {
		_ = s.printJSON(map[string]string{"address": l.Addr().String(), "url": scheme + "://" + l.Addr().String()})
	} else {
		fmt.Fprintf(s.out, "quaymaster echo on %s://%s\n", scheme, l.Addr())
	}
	ended := make(chan struct{})
	go endWith(ctx, srv, ended)
	if e.tls {
		err = srv.ServeTLS(l, "", "")
	} else {
		err = srv.Serve(l)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve on %s: %w", l.Addr(), err)
	}
	<-ended
	return nil
}

// endWith stops the server when ctx ends and closes ended when its answers are out.
func endWith(ctx context.Context, srv *http.Server, ended chan<- struct{}) {
	defer close(ended)
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		e.socket(w, r)
		return
	}
	head := &strings.Builder{}
	n, err := io.Copy(head, io.LimitReader(r.Body, echoBody))
	if err == nil {
		var more int64
		more, err = io.Copy(io.Discard, r.Body)
		n += more
	}
	if err != nil {
		return // the client left, or broke its framing; net/http has answered that
	}
	got := received{
		Name: e.name, Method: r.Method, Target: r.RequestURI, Host: r.Host, Proto: r.Proto, Headers: r.Header,
		BodyLength: n, Body: strings.ToValidUTF8(head.String(), "?"), Trailers: r.Trailer, RemoteAddr: r.RemoteAddr,
	}
	if r.TLS != nil {
		got.ServerName = r.TLS.ServerName
	}
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	text = append(text, '\n')
	if e.name != "" {
		w.Header().Set("X-Echo-Name", e.name)
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
	} else {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		text = append([]byte("quaymaster echo\n"), text...)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	_, _ = w.Write(text)
}

// socket gives each message of a WebSocket back until one side has enough.
func (e *echo) socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // any origin may hear itself
	if err != nil {
		return // answered already
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(16 << 20)
	for {
		kind, text, err := c.Read(e.over)
		if err != nil {
			if e.over.Err() != nil {
				_ = c.Close(websocket.StatusGoingAway, "")
			}
			return
		}
		if c.Write(e.over, kind, text) != nil {
			return
		}
	}
}

// ownCertificate makes a self-signed certificate for any name, good for a day.
func ownCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "quaymaster echo"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"localhost", "*.localhost", "*.test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
