package plan

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"time"
)

// TLS says what is done with TLS on a route. Everything but Mode is for routes that end it themselves.
type TLS struct {
	Mode        TLSMode
	Certificate CertSource
	MinVersion  TLSVersion
	ClientAuth  ClientAuth
	ALPN        []string // in our order of preference; never empty
}

// TLSMode is how a TLS connection is treated.
type TLSMode string

// The modes.
const (
	Passthrough TLSMode = "passthrough" // relayed untouched
	Terminate   TLSMode = "terminate"   // ended here
	Reencrypt   TLSMode = "reencrypt"   // ended here and begun anew to the target
)

// TLSVersion is tls.VersionTLS12 or tls.VersionTLS13, and written as the configuration has it: 1.2 or 1.3.
type TLSVersion uint16

// MarshalText never fails.
func (v TLSVersion) MarshalText() ([]byte, error) {
	if v == tls.VersionTLS13 {
		return []byte("1.3"), nil
	}
	return []byte("1.2"), nil
}

// Ends reports whether TLS ends here.
func (t *TLS) Ends() bool { return t != nil && t.Mode != Passthrough }

// SamePolicy reports whether a connection made under t may carry requests for routes under o: the same certificate,
// client certificates, versions and protocols. How targets are reached does not count.
func (t *TLS) SamePolicy(o *TLS) bool {
	return t.Ends() && o.Ends() && t.Certificate == o.Certificate && t.MinVersion == o.MinVersion &&
		t.ClientAuth == o.ClientAuth && slices.Equal(t.ALPN, o.ALPN)
}

// ClientAuth says whether clients show a certificate. Files are absolute.
type ClientAuth struct {
	Mode   string // "none" | "optional" | "required"
	CAFile string // PEM; whose certificates are taken
}

// A CertSource says where a certificate comes from. It is comparable.
type CertSource struct {
	Kind              CertKind
	CertFile, KeyFile string // of CertFiles: PEM, absolute
}

// CertKind is one of the three ways to come by a certificate.
type CertKind string

// The kinds.
const (
	CertAuto     CertKind = "auto"     // ordered from a CA by ACME
	CertInternal CertKind = "internal" // by our own CA
	CertFiles    CertKind = "files"
)

// A Certificate is one that the plan wants to have at hand.
type Certificate struct {
	// Names are lower case: DNS names, "*.d", or IP addresses. CertAuto and CertInternal have exactly one each. CertFiles
	// may have none: then those in the file count.
	Names    []string
	Source   CertSource
	OnDemand bool     // CertAuto with a pattern ("*.d", "**.d"): one certificate for each name under it that is asked for
	Users    []string // who wants it, sorted: "route api"; for people
}

// Label tells the certificate from all others of a plan: by its name and kind, or by its files.
func (c *Certificate) Label() string {
	if c.Source.Kind == CertFiles {
		return c.Source.CertFile + " with " + c.Source.KeyFile
	}
	return c.Names[0] + " (" + string(c.Source.Kind) + ")"
}

// ACME says how certificates are ordered (RFC 8555).
type ACME struct {
	Issuers     []Issuer // tried in order; never empty
	CARoot      string   // PEM file with a CA trusted for the directories besides the system's; "" = none
	Challenges  []string // "http-01" | "tls-alpn-01" | "dns-01", in order of preference
	HTTPPort    Addr     // where the CA's port 80 arrives
	HTTPOthers  []Addr   // fallbacks of HTTPPort that the CA's port 80 reaches too
	TLSPort     Addr     // where the CA's port 443 arrives
	DNS         DNSProvider
	RenewBefore time.Duration // before the end; 0 = ARI (RFC 9773), else a third of the lifetime
	OnDemand    *OnDemand     // nil: off
}

// An Issuer is one ACME directory and the account there.
type Issuer struct {
	Directory string // URL
	Email     string
	EABKeyID  string // external account binding (RFC 8555 section 7.3.4); "" = none
	EABKey    Secret // base64url
	Profile   string // "" = the CA's default
}

// DNSProvider sets the records of dns-01: by a program (Exec) or by RFC 2136 (Server).
type DNSProvider struct {
	Exec       string // absolute path; "" = none
	Server     string // host:port; "" = none
	Zone       string // "" = the server is asked
	TSIGKey    string // NAME or ALGORITHM:NAME
	TSIGSecret Secret // base64
}

// OnDemand admits names that no route spells out. A name must be under Allow, and Ask, where set, must answer 200.
type OnDemand struct {
	Ask     string   // URL; the name is added as ?domain=
	Allow   []string // exact, "*.d", "**.d"
	PerHour int      // certificates begun per hour
}

// The names of internal handlers that answer challenges.
const (
	HTTPChallenge = "acme-http-01"
	ALPNChallenge = "acme-tls-alpn-01"
)

// ALPNProtocol is what a CA offers alone when it validates by tls-alpn-01 (RFC 8737 section 3).
const ALPNProtocol = "acme-tls/1"

// TargetTLS says how a TLS connection to a target is made. Files are absolute.
type TargetTLS struct {
	ServerName        string // "" = the target's host
	CAFile            string // instead of the system's roots
	CertFile, KeyFile string // shown to the target
	Insecure          bool   // the target's certificate is not looked at
}

// IsIP reports whether the name of a certificate is an address.
func IsIP(name string) bool { _, err := netip.ParseAddr(name); return err == nil }
