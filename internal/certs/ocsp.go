package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"
)

// staples are what OCSP responders say about certificates (RFC 6960), kept in the state folder. Handshakes never wait for
// any of it. Names that only clients spell out are not asked for.
type staples struct {
	c      *Certs
	wake   chan struct{} // holds one
	client *http.Client
	cut    sync.Map     // *tls.Certificate without a staple -> *tls.Certificate with one
	some   atomic.Int32 // how many there are

	mu   sync.Mutex // guards kept
	kept map[id]*answer
}

// id is the SHA-256 of a leaf.
type id [32]byte

func idOf(cert *tls.Certificate) id { return sha256.Sum256(cert.Leaf.Raw) }

// with is the certificate with its staple, if it has one.
func (s *staples) with(cert *tls.Certificate) *tls.Certificate {
	if s.some.Load() == 0 || cert == nil {
		return cert
	}
	if with, ok := s.cut.Load(cert); ok {
		return with.(*tls.Certificate)
	}
	return cert
}

// asks reports whether a responder can be asked about a certificate.
func asks(cert *tls.Certificate) bool {
	return cert != nil && cert.Leaf != nil && len(cert.Leaf.OCSPServer) > 0 && len(cert.Certificate) > 1
}

// subject is a certificate that a responder is asked about, and what people call it.
type subject struct {
	cert *tls.Certificate
	name string
}

// subjects are all of them, each once.
func (s *staples) subjects() map[id]subject {
	out := map[id]subject{}
	x := s.c.now.Load()
	for _, f := range x.files {
		if cert := f.certificate(); asks(cert) {
			out[idOf(cert)] = subject{cert, f.name()}
		}
	}
	for name := range x.auto {
		if cert := s.c.auto.Get(name); asks(cert) {
			out[idOf(cert)] = subject{cert, name}
		}
	}
	return out
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
	wanted := s.subjects()
	s.forget(wanted)
	var asked sync.WaitGroup
	var news atomic.Bool
	slots := make(chan struct{}, ocspAtOnce)
	for _, u := range wanted {
		if !s.attach(u) {
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
			if s.ask(ctx, u) {
				news.Store(true)
			}
		})
	}
	asked.Wait()
	if news.Load() {
		s.save()
	}
}

// forget drops what is known of certificates that nobody is shown any more.
func (s *staples) forget(wanted map[id]subject) {
	s.mu.Lock()
	for i := range s.kept {
		if _, ok := wanted[i]; !ok {
			delete(s.kept, i)
		}
	}
	s.mu.Unlock()
	s.cut.Range(func(k, _ any) bool {
		cert := k.(*tls.Certificate)
		if wanted[idOf(cert)].cert != cert {
			s.detach(cert)
		}
		return true
	})
}

func (s *staples) detach(cert *tls.Certificate) {
	if _, was := s.cut.LoadAndDelete(cert); was {
		s.some.Add(-1)
	}
}

// attach staples what is there, takes off what has ended, and reports whether the responder is to be asked.
func (s *staples) attach(u subject) bool {
	now := s.c.o.Now()
	a := s.of(u.cert)
	have := s.with(u.cert)
	switch {
	case a.der == nil || a.revoked || !now.Before(a.end):
		s.detach(u.cert)
	case !bytes.Equal(have.OCSPStaple, a.der):
		with := *u.cert
		with.OCSPStaple = a.der
		if _, was := s.cut.Swap(u.cert, &with); !was {
			s.some.Add(1)
		}
	}
	return !now.Before(a.next)
}

// of is what is known of a certificate.
func (s *staples) of(cert *tls.Certificate) answer {
	i := idOf(cert)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.kept[i]
	if a == nil {
		return answer{}
	}
	if a.der != nil && a.end.IsZero() { // from the disk, not judged yet
		r, err := judge(cert, a.der, s.c.o.Now())
		if err != nil {
			delete(s.kept, i)
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

// judge reads an answer about a certificate. It is signed by the issuer, or by whom the issuer lets sign answers now.
func judge(cert *tls.Certificate, der []byte, now time.Time) (*ocsp.Response, error) {
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		return nil, err
	}
	r, err := ocsp.ParseResponseForCert(der, cert.Leaf, issuer)
	if err != nil {
		return nil, err
	}
	if by := r.Certificate; by != nil && !bytes.Equal(by.RawSubjectPublicKeyInfo, issuer.RawSubjectPublicKeyInfo) {
		switch {
		case !slices.Contains(by.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning): // RFC 6960 section 4.2.2.2
			return nil, fmt.Errorf("its answer is signed by %.80q, which is no responder of the issuer", by.Subject)
		case now.Before(by.NotBefore), now.After(by.NotAfter):
			return nil, fmt.Errorf("its own certificate is valid from %s to %s only", by.NotBefore.Format(time.RFC3339), by.NotAfter.Format(time.RFC3339))
		}
	}
	if r.Status == ocsp.Unknown {
		return nil, errors.New("it does not know the certificate")
	}
	return r, nil
}

// ask asks the responders in turn, and reports whether one said something new.
func (s *staples) ask(ctx context.Context, u subject) bool {
	i := idOf(u.cert)
	var der []byte
	var r *ocsp.Response
	var err error
	for _, url := range u.cert.Leaf.OCSPServer {
		if der, r, err = s.fetch(ctx, u.cert, url); err == nil {
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
		s.kept = map[id]*answer{}
	}
	a := s.kept[i]
	if a == nil {
		a = &answer{}
		s.kept[i] = a
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
		s.c.o.Log.Warn("no OCSP answer to staple; the one before serves to its end", "host", u.name, "err", err)
	case says.revoked && !revoked:
		s.c.o.Log.Error("certificate is revoked", "host", u.name, "since", r.RevokedAt)
		s.c.o.Events("certificate.failing", u.name, "its CA has revoked it")
	}
	s.attach(u)
	return err == nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// fetch asks one responder.
func (s *staples) fetch(ctx context.Context, cert *tls.Certificate, url string) ([]byte, *ocsp.Response, error) {
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		return nil, nil, err
	}
	question, err := ocsp.CreateRequest(cert.Leaf, issuer, nil)
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
	r, err := judge(cert, der, s.c.o.Now())
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
	s.kept = map[id]*answer{}
	for name, der := range list {
		var i id
		if n, err := hex.Decode(i[:], []byte(name)[:min(len(name), 2*len(i))]); err == nil && n == len(i) {
			s.kept[i] = &answer{der: der}
		}
	}
}

// save keeps what there is for the next process.
func (s *staples) save() {
	list := map[string][]byte{}
	s.mu.Lock()
	for i, a := range s.kept {
		if a.der != nil {
			list[hex.EncodeToString(i[:])] = a.der
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
