package pools

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	maxNames = 8   // of a certificate, in an error
	maxWords = 200 // bytes of what a certificate says of itself
)

// handshakeWords say why a handshake failed, and what to do.
func handshakeWords(err error, config *tls.Config, set *plan.TargetTLS, target string) error {
	plain := "write http:// or leave https:// out"
	if !strings.HasPrefix(target, "https://") {
		plain = "write tls mode terminate, not reencrypt"
	}
	var bad *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &bad):
		return fmt.Errorf("the target's certificate %s", certificateWords(bad, config, set))
	case errors.As(err, &record):
		first := string(record.RecordHeader[:])
		if first == "HTTP/" {
			return errors.New("the target speaks plain HTTP: " + plain)
		}
		return fmt.Errorf("the target does not speak TLS, its first bytes are %q: %s, or name another port", first, plain)
	case isAlert(err):
		return alertWords(err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errors.New("the target ended the connection in the handshake: if it speaks no TLS there, " + plain)
	}
	return fmt.Errorf("handshake: %w", cause("tls", err))
}

// certificateWords go on after "the target's certificate".
func certificateWords(bad *tls.CertificateVerificationError, config *tls.Config, set *plan.TargetTLS) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(bad, &name):
		return nameWords(name.Certificate, config.ServerName)
	case errors.As(bad, &invalid) && invalid.Reason == x509.Expired:
		return timeWords(invalid.Cert)
	case errors.As(bad, &unknown):
		issuer := ""
		if len(bad.UnverifiedCertificates) > 0 {
			last := bad.UnverifiedCertificates[len(bad.UnverifiedCertificates)-1]
			issuer = " (" + clean(last.Issuer.String()) + ")"
		}
		if set.CAFile != "" {
			return "is signed by an unknown authority" + issuer + ", none of target_tls.ca_file " + set.CAFile +
				": add its CA there, or write target_tls.insecure_skip_verify to check nothing"
		}
		return "is signed by an unknown authority" + issuer +
			": write its CA as target_tls.ca_file, or target_tls.insecure_skip_verify to check nothing"
	}
	return "cannot be verified: " + strings.TrimPrefix(bad.Err.Error(), "x509: ")
}

func nameWords(cert *x509.Certificate, wanted string) string {
	var names []string
	if cert != nil {
		names = append(names, cert.DNSNames...)
		for _, ip := range cert.IPAddresses {
			names = append(names, ip.String())
		}
	}
	if len(names) == 0 {
		return "names nobody and so not " + wanted + ": give it a subject alternative name, or write target_tls.insecure_skip_verify to check nothing"
	}
	more := ""
	if len(names) > maxNames {
		names, more = names[:maxNames], ", ..."
	}
	return "is for " + clean(strings.Join(names, ", ")) + more + " and not for " + wanted + ": write the name it has as target_tls.server_name"
}

func timeWords(cert *x509.Certificate) string {
	if cert == nil {
		return "has expired: renew it on the target"
	}
	whose := ""
	if cert.IsCA {
		whose = ", or rather its CA " + clean(cert.Subject.String()) + ","
	}
	if now := time.Now(); now.Before(cert.NotBefore) {
		return "is not valid" + whose + " before " + stamp(cert.NotBefore) + ": is the clock of this machine (" + stamp(now) + ") right?"
	}
	return "has expired" + whose + " on " + stamp(cert.NotAfter) + ": renew it on the target"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// clean makes what a stranger wrote fit for a line of a log.
func clean(s string) string {
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "..."
	}
	return strings.Map(printable, s)
}

// isAlert reports whether err is the target's refusal in words of TLS, or ours of what it said.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error")
}

// alertWords say what an alert means and what to do about it.
func alertWords(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Err == nil {
		return err
	}
	text := strings.TrimPrefix(op.Err.Error(), "tls: ")
	if op.Op == "local error" {
		return errors.New("what the target sent is not TLS as agreed on: " + text)
	}
	hint := ""
	switch text {
	case "certificate required", "bad certificate", "unknown certificate authority", "unknown certificate", "unsupported certificate",
		"expired certificate", "revoked certificate", "access denied":
		hint = ": it wants a client certificate that it trusts: see target_tls.client_cert_file"
	case "handshake failure", "protocol version not supported", "insufficient security level":
		hint = ": TLS 1.2 and 1.3 with modern ciphers were offered; it may also want a client certificate (target_tls.client_cert_file) or a name (target_tls.server_name)"
	case "unrecognized name":
		hint = ": write a name it knows as target_tls.server_name"
	case "no application protocol":
		hint = ": it does not speak HTTP/1.1"
	}
	return errors.New("the target refused: " + text + hint)
}
