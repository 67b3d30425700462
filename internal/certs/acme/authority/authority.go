// Package authority is one CA that speaks ACME (RFC 8555): its directory, our account there, orders, and what it says of
// renewals (RFC 9773).
//
// It promises that directory and account are made once, whoever asks first, that no answer is larger or slower than a
// bound, that a CA which is down is left alone for a while, and that every error says who refused what, in the CA's own
// words, and what to do. It never opens a port, and never waits for one CA while it speaks with another.
package authority

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Store keeps accounts. Read returns an error that is fs.ErrNotExist for what was never written.
type Store interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
	Remove(name string) error
}

// Options is what a CA needs besides the issuer of the plan.
type Options struct {
	Log   *slog.Logger
	Store Store
	Roots *x509.CertPool // whom we trust to be the CA; nil = the system's
	Trust string         // tells Roots from others
	Now   func() time.Time
}

const (
	directoryAge  = 24 * time.Hour
	directoryTime = 20 * time.Second
	setUpTime     = time.Minute // directory and account
)

// A CA is one issuer of the plan.
type CA struct {
	Issuer plan.Issuer
	Trust  string // as in Options
	o      Options
	web    *http.Client
	gate   gate

	turn chan struct{} // held by whoever makes directory and account

	mu    sync.Mutex // guards what follows
	desk  *desk      // nil until both are there
	read  time.Time  // when the directory was read
	opens int        // attempts so far
	fault error      // of the last one
}

// A desk is where orders are taken: directory, account and client belong together and never change.
type desk struct {
	client    *acme.Client
	directory acme.Directory
	account   acme.Account
}

// New makes the CA of issuer. It contacts nobody.
func New(issuer plan.Issuer, o Options) *CA {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &CA{Issuer: issuer, Trust: o.Trust, o: o, turn: make(chan struct{}, 1)}
	c.web = &http.Client{Transport: newTransport(o.Roots, o.Now), Timeout: requestTime}
	return c
}

// Close lets go of idle connections.
func (c *CA) Close() { c.web.CloseIdleConnections() }

// Host is how people know the CA.
func (c *CA) Host() string { return Host(c.Issuer.Directory) }

// Host is the host of a directory's URL.
func Host(directory string) string {
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		return u.Host
	}
	return directory
}

// Resting says until when the CA is to be left alone, and why.
func (c *CA) Resting() (until time.Time, why error) { return c.gate.closed(c.o.Now()) }

// ready returns the desk, and makes it when there is none. One caller makes it, all others wait for that one.
func (c *CA) ready(ctx context.Context) (*desk, error) {
	c.mu.Lock()
	seen := c.opens
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.mu.Lock()
	d, read := c.desk, c.read
	fault := c.fault
	if c.opens == seen {
		fault = nil // of somebody before us
	}
	c.mu.Unlock()
	now := c.o.Now()
	if d != nil && now.Sub(read) < directoryAge && !now.Before(read) {
		return d, nil
	}
	if fault != nil {
		return nil, fault // we waited for this very attempt
	}
	ctx, cancel := context.WithTimeout(ctx, setUpTime)
	defer cancel()
	next, err := c.open(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	var f *Failure
	if c.fault = nil; errors.As(err, &f) { // and not that the caller left
		c.fault = f
	}
	c.opens++
	switch {
	case err == nil:
		c.desk, c.read = next, now
		return next, nil
	case d != nil && f != nil:
		return d, nil // an old directory is better than none
	}
	return nil, err
}

// forget makes the next caller make directory and account anew.
func (c *CA) forget(d *desk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.desk == d {
		c.desk = nil
	}
}

func (c *CA) open(ctx context.Context) (*desk, error) {
	ctx, heard := listen(ctx)
	d := &desk{}
	raw, err := c.directory(ctx, &d.directory)
	if err != nil {
		return nil, c.failure(ctx, heard, "", "reach", err)
	}
	// The library's own cache of directories has one lock for all CAs, which it holds while it waits for one of them: ours
	// is read above, and the library finds it without waiting. Without renewalInfo it does not ask for that either, which it
	// would do three times, slowly, before it hands a certificate out.
	d.client = &acme.Client{
		Directory:  c.Issuer.Directory + "#" + fingerprint(raw),
		HTTPClient: &http.Client{Transport: &here{path: c.Issuer.Directory, body: raw, next: c.web.Transport}, Timeout: requestTime},
		UserAgent:  "quaymaster",
	}
	if d.account, err = c.account(ctx, d); err != nil {
		return nil, c.failure(ctx, heard, "", "register", err)
	}
	return d, nil
}

// directory reads the directory, and returns it as the library is to see it.
func (c *CA) directory(ctx context.Context, into *acme.Directory) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, directoryTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Issuer.Directory, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "quaymaster")
	resp, err := c.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, httpError(resp.StatusCode, resp.Header.Get("Content-Type"), text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return nil, fmt.Errorf("%s is no ACME directory: %w", c.Issuer.Directory, err)
	}
	if into.NewNonce == "" || into.NewAccount == "" || into.NewOrder == "" {
		return nil, fmt.Errorf("%s is no ACME directory: newNonce, newAccount or newOrder is missing", c.Issuer.Directory)
	}
	shown := *into
	shown.RenewalInfo = ""
	return json.Marshal(shown)
}

// httpError is what a CA said with a status that is none of success.
func httpError(status int, contentType string, text []byte) error {
	var p acme.Problem
	if bytes.HasPrefix([]byte(contentType), []byte("application/problem+json")) && json.Unmarshal(text, &p) == nil {
		p.Status = status
		return p
	}
	return &statusError{status, shorten(string(text))}
}

type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("HTTP %d", e.status)
	}
	return fmt.Sprintf("HTTP %d: %s", e.status, e.text)
}

// errNoEAB is worded for people: it is seen before anything is sent.
var errNoEAB = errors.New("the CA gives accounts only to those it knows (external account binding); set acme.issuers[].eab with the kid and hmac that it gave you")
