package form

import (
	"net/url"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// ACME says how certificates are ordered (RFC 8555).
type ACME struct {
	// Whom the CA may write to.
	Email Email `yaml:"email"`
	// The CA: `letsencrypt`, `letsencrypt-staging`, `zerossl`, or the URL of a directory.
	Directory Directory `yaml:"directory"`
	// Several CAs instead, tried in order.
	Issuers []Issuer `yaml:"issuers"`
	// PEM file with a CA that is trusted for the directories besides the system's.
	CARoot string `yaml:"ca_root"`
	// How names are proved, in order of preference. `http-01` needs the CA's port 80 and `tls-alpn-01` its port 443 to
	// arrive here, `dns-01` needs `dns`. Default: http-01, tls-alpn-01, and dns-01 where `dns` is written.
	Challenges []string `yaml:"challenges" oneof:"http-01,tls-alpn-01,dns-01"`
	// Ours, reached by the CA's port 80: a port as in a route, or an object. It is held as long as any certificate could
	// need it. Sites answer there, too.
	HTTPPort ChallengePort `yaml:"http_port"`
	// Ours, reached by the CA's port 443. Sites answer there, too.
	TLSPort PortText `yaml:"tls_port"`
	// How records of dns-01 are set.
	DNS *DNS `yaml:"dns"`
	// How long before its end a certificate is renewed. Default: `auto`, which is when the CA says so (RFC 9773), else
	// after two thirds of its life.
	RenewBefore RenewBefore `yaml:"renew_before"`
	// Certificates for names that no route spells out. Off unless written.
	OnDemand *OnDemand `yaml:"on_demand"`
}

// Defaults of acme.
func (a *ACME) Defaults() {
	a.Directory = "letsencrypt"
	a.HTTPPort.Port = PortText{Text: "80", Bare: true, Lo: 80, Hi: 80}
	a.TLSPort = PortText{Text: "443", Bare: true, Lo: 443, Hi: 443}
}

// Issuer is one CA.
type Issuer struct {
	// As above.
	Directory Directory `yaml:"directory"`
	// Whom it may write to. Default: the one above.
	Email Email `yaml:"email"`
	// External account binding, for CAs that demand an account elsewhere.
	EAB *EAB `yaml:"eab"`
	// The profile that is ordered. Default: the CA's.
	Profile string `yaml:"profile"`
}

// EAB binds an account at the CA to another one (RFC 8555, section 7.3.4).
type EAB struct {
	// The key's id.
	KID string `yaml:"kid"`
	// The key, in base64url; `file:PATH` reads it from a file.
	HMAC strict.Secret `yaml:"hmac"`
}

// ChallengePort is a port, or an object.
type ChallengePort struct {
	ChallengePortObject
	Object bool
}

// ChallengePortObject is a port with those that stand in for it.
type ChallengePortObject struct {
	// The port, as it is written without an object.
	Port PortText `yaml:"port"`
	// Ports that are tried in order when it is busy.
	Fallback []PortText `yaml:"fallback"`
	// The CA's port 80 is forwarded to the fallbacks, too. Without it they are refused, since the CA comes to 80.
	Forwarded bool `yaml:"forwarded"`
}

// ReadNode reads either shape.
func (p *ChallengePort) ReadNode(r *strict.Reader, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		r.Read(n, &p.Port)
		return
	}
	p.Object = true
	r.Read(n, &p.ChallengePortObject)
}

// DNS sets records: by a program, or by RFC 2136.
type DNS struct {
	// A program that is run as `PROGRAM present NAME VALUE` and `PROGRAM cleanup NAME VALUE`.
	Exec string `yaml:"exec"`
	// A name server that takes updates.
	RFC2136 *RFC2136 `yaml:"rfc2136"`
}

// RFC2136 is a name server that takes updates.
type RFC2136 struct {
	// HOST:PORT.
	Server HostPort `yaml:"server"`
	// The zone that is updated. Default: the one in which the server has the name.
	Zone HostName `yaml:"zone"`
	// The name of the TSIG key, after its algorithm and a colon if that is not hmac-sha256,
	TSIGKey TSIGKey `yaml:"tsig_key"`
	// and the key, in base64; `file:PATH` reads it from a file.
	TSIGSecret strict.Secret `yaml:"tsig_secret"`
}

// TSIGKey is NAME or ALGORITHM:NAME.
type TSIGKey string

// ReadText reads it.
func (k *TSIGKey) ReadText(s string) error {
	*k = TSIGKey(s)
	algorithm, name, has := strings.Cut(s, ":")
	if !has {
		algorithm, name = "hmac-sha256", s
	}
	if !oneOf(strings.TrimSuffix(algorithm, "."), []string{"hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"}) {
		return strict.Faultf("write hmac-sha256:NAME, or sha224, sha384 or sha512", "%q names no algorithm that is known", short(s))
	}
	if !host(strings.ToLower(strings.TrimSuffix(name, "."))) {
		return strict.Faultf("write the name of the key, such as acme-key", "%q is no name of a key", short(s))
	}
	return nil
}

// OnDemand admits names that no route spells out.
type OnDemand struct {
	// A URL that is asked for each name, with ?domain=NAME; 200 admits it.
	Ask AskURL `yaml:"ask"`
	// Names that may be ordered at all: a name, `*.d` or `**.d`.
	Allow []Domain `yaml:"allow"`
	// Certificates begun per hour.
	PerHour int `yaml:"per_hour" range:"1..10000"`
}

// Defaults of on_demand.
func (o *OnDemand) Defaults() { o.PerHour = 10 }

// Email is an address of mail.
type Email string

// ReadText reads it.
func (e *Email) ReadText(s string) error {
	*e = Email(s)
	name, domain, ok := strings.Cut(s, "@")
	if !ok || name == "" || !host(strings.ToLower(domain)) || strings.ContainsAny(s, " \t\r\n,;<>\"") || len(s) > 254 {
		return strict.Faultf("write ops@example.com", "%q is no address of mail", short(s))
	}
	return nil
}

// Directory is the CA's name, or its URL.
type Directory string

// Directories are the CAs that have a name.
var Directories = map[string]string{
	"letsencrypt":         "https://acme-v02.api.letsencrypt.org/directory",
	"letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
	"zerossl":             "https://acme.zerossl.com/v2/DV90",
}

// URL is where the directory is.
func (d Directory) URL() string {
	if u, ok := Directories[string(d)]; ok {
		return u
	}
	return string(d)
}

// ReadText reads it.
func (d *Directory) ReadText(s string) error {
	*d = Directory(s)
	if _, ok := Directories[s]; ok {
		return nil
	}
	const words = "write letsencrypt, letsencrypt-staging, zerossl or https://HOST/DIRECTORY"
	u, err := url.Parse(s)
	switch {
	case err == nil && u.Scheme == "http" && u.Host != "":
		return strict.Faultf("write https:"+strings.TrimPrefix(short(s), "http:"), "%q: a CA is reached by https", short(s))
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || len(s) > 2048:
		return strict.Faultf(words, "%q is no directory of a CA", short(s))
	}
	return nil
}

// AskURL is a URL that is asked for names.
type AskURL string

// ReadText reads it.
func (a *AskURL) ReadText(s string) error {
	*a = AskURL(s)
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || len(s) > 2048 {
		return strict.Faultf("write http://127.0.0.1:3001/allowed", "%q is no URL that could be asked", short(s))
	}
	return nil
}

// RenewBefore is `auto` or a time span.
type RenewBefore struct{ Duration Duration }

// ReadText reads it.
func (b *RenewBefore) ReadText(s string) error {
	if s == "auto" {
		b.Duration = 0
		return nil
	}
	if err := b.Duration.ReadText(s); err != nil {
		return strict.Faultf("write auto, or a span such as 720h", "%q is no time before the end of a certificate", short(s))
	}
	if b.Duration == 0 {
		return strict.Faultf("write auto, or a span such as 720h", "a certificate is not renewed at its very end")
	}
	return nil
}
