package form

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// TLS is what is done with TLS.
type TLS struct {
	// `terminate` ends it here, `reencrypt` (also `terminate-and-reencrypt`) ends it here and begins it anew to every
	// target, `passthrough` relays it to the target unopened.
	Mode string `yaml:"mode" oneof:"terminate,reencrypt,terminate-and-reencrypt,passthrough"`
	// What clients are shown: `auto` (ordered by ACME), `internal` (by a local CA), or `{cert_file, key_file}`. Default:
	// the one of `certificates` that has all the domains; else internal for localhost, `*.localhost`, `*.test`,
	// `*.internal` and IP addresses, and auto for others.
	Certificate CertificateChoice `yaml:"certificate"`
	// The oldest version that is spoken.
	MinVersion string `yaml:"min_version" oneof:"1.2,1.3"`
	// Whether clients show a certificate.
	ClientAuth ClientAuth `yaml:"client_auth"`
	// The protocols that are offered, in order of preference.
	ALPN []string `yaml:"alpn" oneof:"http/1.1"`
}

// Defaults of tls.
func (t *TLS) Defaults() {
	t.Mode, t.MinVersion, t.ALPN = "terminate", "1.2", []string{"http/1.1"}
	t.ClientAuth.Defaults()
}

// ClientAuth says whether clients show a certificate.
type ClientAuth struct {
	// `optional` takes clients without one, too; a certificate that is shown must be good in either case.
	Mode string `yaml:"mode" oneof:"none,optional,required"`
	// PEM file with the CAs whose certificates are taken.
	CAFile string `yaml:"ca_file"`
}

// Defaults of client_auth.
func (c *ClientAuth) Defaults() { c.Mode = "none" }

// CertificateChoice is `auto`, `internal`, or a pair of files.
type CertificateChoice struct {
	KeyPair
	Kind string // "" (not written), "auto", "internal" or "files"
}

// KeyPair is a certificate with its key. Both files are watched: what they hold is taken without a reload, and as long as
// that is no certificate the old one stays.
type KeyPair struct {
	// PEM file with the certificate, and those that lead to its root.
	CertFile string `yaml:"cert_file"`
	// PEM file with the key.
	KeyFile string `yaml:"key_file"`
}

// ReadNode reads either shape.
func (c *CertificateChoice) ReadNode(r *strict.Reader, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		var word certificateWord
		r.Read(n, &word)
		c.Kind = string(word)
		return
	}
	c.Kind = "files"
	before := len(r.Problems)
	r.Read(n, &c.KeyPair)
	if n.Kind == yaml.MappingNode && len(r.Problems) == before && (c.CertFile == "" || c.KeyFile == "") {
		c.Kind = ""
		r.Problem(n, "write {cert_file: PATH, key_file: PATH}", "a certificate needs both files")
	}
}

// certificateWord is `auto` or `internal`.
type certificateWord string

// ReadText reads it.
func (c *certificateWord) ReadText(s string) error {
	words := []string{"auto", "internal"}
	if oneOf(s, words) {
		*c = certificateWord(s)
		return nil
	}
	remedy := "write auto, internal or {cert_file: PATH, key_file: PATH}"
	if near := strict.Nearest(s, words); near != "" {
		remedy = "write " + near
	}
	return strict.Faultf(remedy, "%q is no certificate", short(s))
}

// Certificate is one of `certificates`.
type Certificate struct {
	// Names it is for: a name, or `*.d`. Default: those in the file.
	Names []CertName `yaml:"names"`
	// PEM file with the certificate, and those that lead to its root.
	CertFile string `yaml:"cert_file"`
	// PEM file with the key.
	KeyFile string `yaml:"key_file"`
}

// TargetTLS says how targets are reached by TLS.
type TargetTLS struct {
	// The name that the target's certificate must have. Default: the target's host.
	ServerName HostName `yaml:"server_name"`
	// PEM file with the CAs that are trusted instead of the system's.
	CAFile string `yaml:"ca_file"`
	// PEM file with a certificate that is shown to the target,
	ClientCertFile string `yaml:"client_cert_file"`
	// and with its key.
	ClientKeyFile string `yaml:"client_key_file"`
	// Take any certificate. Whoever is on the way can then read and change everything.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify"`
}

// CertName is a name that a certificate can have: a domain, but not `**.d`.
type CertName string

// ReadText reads it.
func (c *CertName) ReadText(s string) error {
	var d Domain
	err := d.ReadText(s)
	*c = CertName(d)
	if err == nil && strings.HasPrefix(string(d), "**.") {
		return strict.Faultf("write "+string(d[1:]), "%q: a certificate has names one label deep", short(s))
	}
	return err
}
