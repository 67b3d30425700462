package authority

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

// Kind says whose fault a failure is, as far as the schedule cares.
type Kind uint8

// The kinds.
const (
	Refused Kind = iota // the CA does not give this name a certificate
	Limited             // it has had too many requests
	Down                // it does not answer, or not in its right mind
	Ours                // something on this side: the DNS provider, an account's settings
)

// A Failure is why a CA gave no certificate.
type Failure struct {
	Host      string // of the CA
	Name      string // "" when it is about the CA as a whole
	Challenge string // "" when none was being tried
	Kind      Kind
	Wait      time.Duration // that the CA asks for (Retry-After); 0 = it does not say
	Err       error         // an acme.Problem where the CA said something

	doing string
}

// Unwrap gives what was said.
func (f *Failure) Unwrap() error { return f.Err }

// Error says who, at what, why, and what to do.
func (f *Failure) Error() string {
	var b strings.Builder
	b.WriteString(f.Host)
	switch {
	case f.Challenge != "":
		b.WriteString(" by " + f.Challenge)
	case f.doing == "register":
		b.WriteString(", account")
	}
	b.WriteString(": ")
	p, problem := problemOf(f.Err)
	switch {
	case problem:
		b.WriteString(said(p))
	case f.Kind == Down && f.doing == "reach":
		b.WriteString("cannot be reached: " + plain(f.Err))
	default:
		b.WriteString(plain(f.Err))
	}
	if r := f.remedy(p); r != "" {
		b.WriteString("; " + r)
	}
	return b.String()
}

// said is a problem in one line: its type without the prefix that all have, the detail, and the parts.
func said(p acme.Problem) string {
	text := kindOf(p.Type)
	if text == "" {
		text = fmt.Sprintf("HTTP %d", p.Status)
	}
	if d := shorten(p.Detail); d != "" {
		text += ": " + d
	} else if p.Title != "" {
		text += ": " + shorten(p.Title)
	}
	for i, s := range p.Subproblems {
		if i == 5 {
			text += fmt.Sprintf(" (and %d more)", len(p.Subproblems)-i)
			break
		}
		text += fmt.Sprintf(" (%s: %s: %s)", upTo(253, s.Identifier.Value), kindOf(s.Type), upTo(200, s.Detail))
	}
	if p.Instance != "" {
		text += " <" + shorten(p.Instance) + ">"
	}
	return text
}

// kindOf is a problem's type for people.
func kindOf(problem string) string {
	return upTo(100, strings.TrimPrefix(problem, acme.ProblemTypeNamespace))
}

// remedy is what a person can do.
func (f *Failure) remedy(p acme.Problem) string {
	port := map[string]string{"http-01": "80", "tls-alpn-01": "443"}[f.Challenge]
	switch p.Type {
	case acme.ProblemTypeConnection:
		if port != "" {
			return fmt.Sprintf("let port %s of %s reach this machine (address in the DNS, firewall, NAT)", port, f.Name)
		}
	case acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
		switch {
		case port != "":
			return fmt.Sprintf("another server answers on port %s of %s: see its addresses in the DNS, IPv6 too, and what stands in front", port, f.Name)
		case f.Challenge == "dns-01":
			return "the CA did not find our record: see that the zone's servers have it, and that _acme-challenge is no alias to elsewhere"
		}
	case acme.ProblemTypeTLS:
		return fmt.Sprintf("something in front of this machine ends TLS on port 443 of %s; use http-01 or dns-01", f.Name)
	case acme.ProblemTypeDNS:
		return fmt.Sprintf("see that %s has an address in the public DNS, and that its DNSSEC and CAA answers are well", f.Name)
	case acme.ProblemTypeCAA:
		return "allow the CA in the CAA records of " + f.Name
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return "this CA does not serve the name: take another issuer, or certificate: internal"
	case acme.ProblemTypeRateLimited:
		return "wait; more tries make it worse"
	case acme.ProblemTypeExternalAccountRequired:
		return "set acme.issuers[].eab with the kid and hmac that the CA gave you"
	case acme.ProblemTypeInvalidContact, acme.ProblemTypeUnsupportedContact:
		return "correct acme.email"
	case acme.ProblemTypeUserActionRequired:
		return "the CA wants you to act: see " + shorten(p.Instance)
	}
	if f.Kind == Down && p.Type == "" && strings.Contains(f.Err.Error(), "x509:") {
		return "if it is a private CA, set acme.ca_root"
	}
	return ""
}

// failure makes one of an error that came while a CA was asked, and tells the gate.
func (c *CA) failure(ctx context.Context, heard *ear, name, doing string, err error) error {
	var f *Failure
	if errors.As(err, &f) {
		return err
	}
	switch {
	case errors.Is(context.Cause(ctx), errTooMuch):
		err = errTooMuch
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	}
	f = &Failure{Host: c.Host(), Name: name, Err: err, doing: doing}
	status, wait := heard.last()
	f.Wait = wait
	p, problem := problemOf(err)
	var local *localError
	switch {
	case errors.As(err, &local), errors.Is(err, errNoEAB):
		f.Kind, f.Wait = Ours, 0
	case p.Type == acme.ProblemTypeRateLimited, status == 429, status == 503 && wait > 0:
		f.Kind = Limited
	case !problem, p.Type == acme.ProblemTypeServerInternal, p.Status >= 500, p.Type == acme.ProblemTypeBadNonce:
		f.Kind = Down
	}
	if f.Kind == Limited || f.Kind == Down {
		c.gate.failed(c.o.Now(), f.Wait, f)
	} else {
		c.gate.opened()
	}
	return f
}

// A localError is one that the CA has no part in.
type localError struct{ error }

// Unwrap gives the cause.
func (e *localError) Unwrap() error { return e.error }

// plain drops what the library and net/http put in front of an error: verbs and URLs that say nothing to a person.
func plain(err error) string {
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, "attempt "); ok { // attempt 3: URL: what happened
		if parts := strings.SplitN(rest, ": ", 3); len(parts) == 3 {
			text = parts[2]
		}
	}
	for _, cut := range []string{"performing request: ", "provisioning client: ", "fetching new nonce from server: "} {
		if i := strings.Index(text, cut); i >= 0 && i < 200 {
			text = text[i+len(cut):]
		}
	}
	return shorten(text)
}

// shorten bounds what somebody else wrote, and keeps it in one line that a terminal can show.
func shorten(s string) string { return upTo(500, s) }

// upTo is shorten with a bound of one's own, in bytes.
func upTo(most int, s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
