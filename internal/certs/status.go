package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/certs/acme"
	"github.com/quaymaster/quaymaster/internal/certs/ca"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Status is one certificate and how it stands.
type Status struct {
	Name      string
	Names     []string // all of them
	Source    plan.CertKind
	State     string // one of the states of acme, or Missing
	NotBefore time.Time
	NotAfter  time.Time
	Issuer    string
	Challenge string
	Error     string
	Warning   string // of one that serves all the same
	Attempts  int
	NextTry   time.Time
	RenewAt   time.Time
	OnDemand  bool
	Users     []string
	File      string
	OCSP      string // good, revoked, or why nothing is stapled; "" where the certificate names no responder
}

// Has reports whether the certificate is the one that people call by that name.
func (s *Status) Has(name string) bool {
	name = canonical(name)
	return s.Name == name || slices.Contains(s.Names, name)
}

// Missing is the state of a certificate that is not there, and that nothing is under way for.
const Missing = "missing"

// Status lists every certificate, sorted by name.
func (c *Certs) Status() []Status {
	x := c.now.Load()
	var out []Status
	if x.plan == nil {
		return out
	}
	seen := map[*file]int{}
	users := map[string][]string{}
	for _, cert := range x.plan.Certificates {
		switch cert.Source.Kind {
		case plan.CertFiles:
			f := x.files[cert.Source]
			if i, ok := seen[f]; ok {
				out[i].Users = append(slices.Clone(out[i].Users), cert.Users...)
				continue
			}
			seen[f] = len(out)
			out = append(out, c.ofFile(f, cert))
		case plan.CertInternal:
			out = append(out, c.ofLocal(x, cert))
		default:
			for _, n := range cert.Names {
				users[n] = cert.Users
			}
		}
	}
	for _, a := range c.auto.Status() {
		s := ofOrdered(a, users[a.Name])
		if x.auto[a.Name] {
			if cert := c.auto.Get(a.Name); asks(cert) {
				c.said(&s, cert)
			}
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (c *Certs) ofFile(f *file, cert *plan.Certificate) Status {
	s := Status{Name: f.name(), Names: cert.Names, Source: plan.CertFiles, State: acme.Valid, Users: cert.Users, File: f.src.CertFile}
	if len(cert.Names) > 0 {
		s.Name = cert.Names[0]
	}
	l := f.now.Load()
	if l == nil {
		s.State = Missing
		return s
	}
	if len(s.Names) == 0 {
		s.Names = l.names
	}
	s.times(l.cert.Leaf)
	s.RenewAt = time.Time{} // whoever writes the files knows
	if c.o.Now().After(s.NotAfter) {
		s.State, s.Error = acme.Expired, "it ended on "+s.NotAfter.Format(time.DateOnly)
	}
	if bad := f.fault.Load(); bad != nil {
		if s.State == acme.Valid {
			s.State = acme.Failing
		}
		s.Error = bad.err.Error()
	}
	for _, n := range cert.Names {
		if !covers(l.cert.Leaf, n) {
			s.Warning = "it is not for " + n + ", which clients will refuse"
		}
	}
	c.said(&s, l.cert)
	return s
}

// said adds what an OCSP responder says.
func (c *Certs) said(s *Status, cert *tls.Certificate) {
	if len(cert.Leaf.OCSPServer) == 0 {
		return
	}
	switch a := c.staples.of(cert); {
	case a.revoked:
		s.OCSP, s.State, s.Error = "revoked", acme.Failing, "its CA has revoked it"
	case a.der != nil:
		s.OCSP = "good until " + a.end.Format(time.RFC3339)
	case a.err != nil:
		s.OCSP = a.err.Error()
	case len(cert.Certificate) < 2:
		s.OCSP = "the file has no issuer's certificate, without which no responder can be asked"
	default:
		s.OCSP = "not asked yet"
	}
}

// covers reports whether a certificate is for a name as configuration writes it.
func covers(cert *x509.Certificate, name string) bool {
	if strings.HasPrefix(name, "*.") {
		return slices.ContainsFunc(cert.DNSNames, func(n string) bool { return strings.EqualFold(n, name) })
	}
	return cert.VerifyHostname(name) == nil
}

func (c *Certs) ofLocal(x *index, cert *plan.Certificate) Status {
	s := Status{Names: cert.Names, Source: plan.CertInternal, State: acme.Valid, Users: cert.Users, Issuer: "local CA"}
	if len(cert.Names) > 0 {
		s.Name = canonical(cert.Names[0])
	}
	slot := x.local[s.Name]
	if slot == nil { // a pattern: a leaf for each name, when it is asked for
		if err := c.ca.Fault(); err != nil && c.ca.Open() != nil {
			s.State, s.Error = Missing, err.Error()
		}
		return s
	}
	if l := slot.now.Load(); l != nil {
		s.times(l.cert.Leaf)
	}
	slot.mu.Lock()
	defer slot.mu.Unlock()
	if slot.fault != nil {
		s.Error, s.NextTry, s.State = slot.fault.Error(), slot.again, acme.Failing
		if s.NotAfter.IsZero() {
			s.State = Missing
		}
	}
	if !s.NotAfter.IsZero() && c.o.Now().After(s.NotAfter) {
		s.State = acme.Expired
	}
	return s
}

// times takes what a certificate says of itself.
func (s *Status) times(leaf *x509.Certificate) {
	s.NotBefore, s.NotAfter, s.RenewAt = leaf.NotBefore, leaf.NotAfter, ca.RenewAt(leaf)
	if s.Issuer = leaf.Issuer.CommonName; s.Issuer == "" {
		s.Issuer = leaf.Issuer.String()
	}
}

func ofOrdered(a acme.State, users []string) Status {
	if users == nil {
		users = a.Users
	}
	return Status{
		Name: a.Name, Names: []string{a.Name}, Source: plan.CertAuto, State: a.State, NotBefore: a.NotBefore, NotAfter: a.NotAfter,
		Issuer: a.Issuer, Challenge: a.Challenge, Error: a.Error, Attempts: a.Attempts, NextTry: a.NextTry, RenewAt: a.RenewAt,
		OnDemand: a.OnDemand, Users: users, File: a.File,
	}
}

// Problem is a certificate that is not as the plan wants it.
type Problem struct{ Object, Message, Remedy string }

// Problems lists what is wrong, in the order of Status.
func (c *Certs) Problems() []Problem {
	var out []Problem
	x := c.now.Load()
	if err := c.ca.Fault(); err != nil && (len(x.local) > 0 || len(x.wild) > 0 || x.strangers()) {
		out = append(out, Problem{"local CA", err.Error(), c.mendCA()})
	}
	more := 0
	for _, s := range c.Status() {
		switch {
		case s.State != acme.Failing && s.State != acme.Expired && s.State != Missing:
		case s.Source == plan.CertInternal && c.ca.Fault() != nil: // said above
		case len(out) >= maxProblems:
			more++
		default:
			out = append(out, Problem{s.Name, s.trouble(), s.remedy()})
		}
	}
	if more > 0 {
		out = append(out, Problem{"certificates", fmt.Sprintf("%d more are not as they should be", more), "\"quaymaster certs\" lists them"})
	}
	return out
}

// maxProblems bounds how many certificates are spelt out: a CA that is down may concern ten thousand.
const maxProblems = 20

// mendCA is what a person can do about the local CA.
func (c *Certs) mendCA() string {
	path := filepath.Join(c.o.State.Path(), ca.RootFile)
	if c.o.State.Fault() != nil {
		return "make " + c.o.State.Path() + " writable; what is wrong with it is said above"
	}
	return fmt.Sprintf("put %s back from a backup. If there is none: mv %s %s.bad, \"quaymaster reload\", and \"quaymaster trust\" wherever the old root was trusted", path, path, path)
}

func (s *Status) trouble() string {
	switch {
	case s.NotAfter.IsZero():
		return "there is no certificate: " + s.Error
	case s.State == acme.Expired:
		return cmp.Or(s.Error, "it ended on "+s.NotAfter.Format(time.DateOnly))
	}
	return s.Error + "; the certificate in use ends on " + s.NotAfter.Format(time.DateOnly)
}

func (s *Status) remedy() string {
	switch {
	case s.OCSP == "revoked":
		return "get a new certificate from its CA and replace " + s.File
	case s.Source == plan.CertFiles:
		return "mend " + s.File + " and its key; they are read again by themselves"
	case s.Source == plan.CertInternal:
		return "see the log"
	}
	return "mend what the error names; it is tried again by itself, or at once with \"quaymaster certs renew " + s.Name + "\""
}

// collector shows when certificates end.
type collector struct{ c *Certs }

var notAfter = prometheus.NewDesc("quaymaster_certificate_not_after_timestamp_seconds", "When the certificate of a name ends.", []string{"name"}, nil)

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) { ch <- notAfter }

// Collect implements prometheus.Collector. Names that clients make up are not among the labels.
func (m collector) Collect(ch chan<- prometheus.Metric) {
	said := map[string]bool{}
	for _, s := range m.c.Status() {
		if s.NotAfter.IsZero() || s.OnDemand || said[s.Name] {
			continue
		}
		said[s.Name] = true
		ch <- prometheus.MustNewConstMetric(notAfter, prometheus.GaugeValue, float64(s.NotAfter.Unix()), s.Name)
	}
}
