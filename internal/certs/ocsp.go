package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// staples are what OCSP responders say about the certificates in files (RFC 6960), kept in the state folder. Whoever is
// ordered by ACME has theirs from there. Handshakes never wait for any of it.
type staples struct {
	c      *Certs
	wake   chan struct{} // holds one
	client *http.Client

	mu   sync.Mutex // guards kept
	kept map[[32]byte]*answer
}

// staple is a certificate with what its responder said.
type staple struct {
	of   *loaded
	cert *tls.Certificate
}

// answer is what is known of one certificate.
type answer struct {
	der     []byte // nil: none
	this    time.Time
	end     time.Time
	next    time.Time // when it is asked for again
	tries   int       // that failed in a row
	err     error     // of the last
	revoked bool
}

const (
	ocspFile   = "ocsp.json"
	ocspWithin = 10 * time.Second // for one responder
	ocspAtOnce = 4
	ocspLook   = 30 * time.Second
	maxAnswer  = 64 << 10
	unsaid     = time.Hour // how long an answer counts that does not say
)

func (s *staples) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run asks for what is due until ctx ends.
func (s *staples) run(ctx context.Context) {
	s.load()
	look := time.NewTicker(ocspLook)
	defer look.Stop()
	for {
		s.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-s.wake:
		}
	}
}

// round attaches what is there, asks for what is due, and keeps what came of it.
func (s *staples) round(ctx context.Context) {
	var asked sync.WaitGroup
	slots := make(chan struct{}, ocspAtOnce)
	wanted := map[[32]byte]bool{}
	var changed sync.Once
	news := false
	for _, f := range s.c.now.Load().files {
		l := f.now.Load()
		if l == nil || len(l.cert.Leaf.OCSPServer) == 0 || len(l.cert.Certificate) < 2 || wanted[l.id] {
			continue
		}
		wanted[l.id] = true
		if !s.attach(f, l) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			asked.Wait()
			return
		}
		asked.Go(func() {
			defer func() { <-slots }()
			if s.ask(ctx, f, l) {
				changed.Do(func() { news = true })
			}
		})
	}
	asked.Wait()
	s.mu.Lock()
	for id := range s.kept {
		if !wanted[id] {
			delete(s.kept, id)
		}
	}
	s.mu.Unlock()
	if news {
		s.save()
	}
}

// attach staples what is there, takes off what has ended, and reports whether the responder is to be asked.
func (s *staples) attach(f *file, l *loaded) bool {
	now := s.c.o.Now()
	a := s.of(l)
	have := f.staple.Load()
	switch {
	case a.der == nil || a.revoked || !now.Before(a.end):
		f.staple.Store(nil)
	case have == nil || have.of != l || !bytes.Equal(have.cert.OCSPStaple, a.der):
		with := *l.cert
		with.OCSPStaple = a.der
		f.staple.Store(&staple{of: l, cert: &with})
	}
	return !now.Before(a.next)
}

// of is what is known of a certificate.
func (s *staples) of(l *loaded) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.kept[l.id]
	if a == nil {
		return answer{}
	}
	if a.der != nil && a.end.IsZero() { // from the disk, not judged yet
		r, err := judge(l, a.der)
		if err != nil {
			delete(s.kept, l.id)
			return answer{}
		}
		a.fill(r)
	}
	return *a
}

// fill takes the times of an answer.
func (a *answer) fill(r *ocsp.Response) {
	a.this, a.end, a.revoked = r.ThisUpdate, r.NextUpdate, r.Status == ocsp.Revoked
	if a.end.IsZero() {
		a.end = r.ThisUpdate.Add(unsaid)
	}
	a.next = a.this.Add(a.end.Sub(a.this) / 2)
}

// judge reads an answer about l.
func judge(l *loaded, der []byte) (*ocsp.Response, error) {
	issuer, err := x509.ParseCertificate(l.cert.Certificate[1])
	if err != nil {
		return nil, err
	}
	r, err := ocsp.ParseResponseForCert(der, l.cert.Leaf, issuer)
	if err == nil && r.Status == ocsp.Unknown {
		err = errors.New("it does not know the certificate")
	}
	return r, err
}

// ask asks the responders in turn, and reports whether one said something new.
func (s *staples) ask(ctx context.Context, f *file, l *loaded) bool {
	var der []byte
	var r *ocsp.Response
	var err error
	for _, url := range l.cert.Leaf.OCSPServer {
		if der, r, err = s.fetch(ctx, l, url); err == nil {
			break
		}
		err = fmt.Errorf("OCSP responder %s: %w", url, err)
	}
	if ctx.Err() != nil {
		return false
	}
	now := s.c.o.Now()
	s.mu.Lock()
	if s.kept == nil {
		s.kept = map[[32]byte]*answer{}
	}
	a := s.kept[l.id]
	if a == nil {
		a = &answer{}
		s.kept[l.id] = a
	}
	first := a.err == nil
	revoked := a.revoked
	if a.err = err; err != nil {
		a.tries++
		a.next = now.Add(min(time.Minute<<min(a.tries-1, 10), time.Hour))
	} else {
		a.tries, a.der = 0, der
		a.fill(r)
		a.next = later(a.next, now.Add(time.Minute)) // whatever it says of its times
	}
	says := *a
	s.mu.Unlock()
	switch {
	case err != nil && first:
		s.c.o.Log.Warn("no OCSP answer to staple; the one before serves to its end", "path", f.src.CertFile, "err", err)
	case says.revoked && !revoked:
		s.c.o.Log.Error("certificate is revoked", "path", f.src.CertFile, "since", r.RevokedAt)
		s.c.o.Events("certificate.failing", f.name(), "its CA has revoked it")
	}
	s.attach(f, l)
	return err == nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// fetch asks one responder.
func (s *staples) fetch(ctx context.Context, l *loaded, url string) ([]byte, *ocsp.Response, error) {
	issuer, err := x509.ParseCertificate(l.cert.Certificate[1])
	if err != nil {
		return nil, nil, err
	}
	question, err := ocsp.CreateRequest(l.cert.Leaf, issuer, nil)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ocspWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(question))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	client := s.client
	if client == nil {
		client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, errors.Unwrap(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, nil, errors.New(res.Status)
	}
	der, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, err
	}
	if len(der) > maxAnswer {
		return nil, nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	r, err := judge(l, der)
	if err == nil && !r.NextUpdate.IsZero() && !s.c.o.Now().Before(r.NextUpdate) {
		err = fmt.Errorf("its answer ended at %s", r.NextUpdate.Format(time.RFC3339))
	}
	return der, r, err
}

// load reads what earlier processes have kept. Nothing is lost with it but time.
func (s *staples) load() {
	text, err := s.c.o.State.Read(ocspFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	list := map[string][]byte{}
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		s.c.o.Log.Warn("kept OCSP answers cannot be read; they are asked for anew", "file", ocspFile, "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = map[[32]byte]*answer{}
	for name, der := range list {
		var id [32]byte
		if n, err := hex.Decode(id[:], []byte(name)[:min(len(name), 64)]); err == nil && n == len(id) {
			s.kept[id] = &answer{der: der}
		}
	}
}

// save keeps what there is for the next process.
func (s *staples) save() {
	list := map[string][]byte{}
	s.mu.Lock()
	for id, a := range s.kept {
		if a.der != nil {
			list[hex.EncodeToString(id[:])] = a.der
		}
	}
	s.mu.Unlock()
	text, err := json.Marshal(list)
	if err == nil {
		err = s.c.o.State.Write(ocspFile, text)
	}
	if err != nil {
		s.c.o.Log.Debug("OCSP answers are not kept", "err", err) // the state folder's own fault is shown already
	}
}
