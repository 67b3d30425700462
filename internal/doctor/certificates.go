package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/ca"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	soon      = 14 * 24 * time.Hour // a certificate in files that ends in less is worth a word
	maxLooked = 20                  // names that are looked up
	dnsWithin = 5 * time.Second
)

// certificates looks at the files, the local CA, and what is needed to order.
func (x *examination) certificates() {
	if x.Plan == nil {
		return
	}
	internal, ordered := 0, []string{}
	for _, c := range x.Plan.Certificates {
		switch c.Source.Kind {
		case plan.CertFiles:
			x.pair(c)
		case plan.CertInternal:
			internal++
		case plan.CertAuto:
			ordered = append(ordered, c.Names...)
		}
	}
	if internal > 0 {
		x.localCA()
	}
	if set := x.Plan.Settings.ACME; set != nil && len(ordered) > 0 {
		x.ok("acme", "%d names have certificates of %s, by %s", len(ordered), hosts(set), strings.Join(set.Challenges, ", "))
	}
}

// hosts are the CAs, in order.
func hosts(set *plan.ACME) string {
	var out []string
	for _, i := range set.Issuers {
		if u, err := url.Parse(i.Directory); err == nil {
			out = append(out, u.Host)
		}
	}
	return strings.Join(out, ", then ")
}

// pair looks at a certificate in files.
func (x *examination) pair(c *plan.Certificate) {
	for _, name := range []string{c.Source.CertFile, c.Source.KeyFile} {
		info, err := os.Stat(name)
		switch {
		case err != nil:
			x.add(Fail, name, "put the file there, or mend the path", "cannot be read: %v", why(err))
			return
		case !x.user.may(name, info, mayRead):
			x.add(Fail, name, fmt.Sprintf("chgrp %s %s && chmod g+r %s", x.user.groupName(), name, name), "%s may not read it", x.user)
			return
		case name == c.Source.KeyFile && info.Mode().Perm()&0o007 != 0:
			x.add(Warn, name, "chmod o-rwx "+name, "everybody may use this key (mode %04o)", info.Mode().Perm())
		}
	}
	cert, err := certificateIn(c.Source.CertFile)
	now := time.Now()
	switch {
	case err != nil:
		x.add(Fail, c.Source.CertFile, "write the certificate there, PEM, and after it those that lead to its root", "%v", err)
	case now.After(cert.NotAfter):
		x.add(Fail, c.Source.CertFile, "get a new one and replace both files", "it ended on %s: clients refuse it", cert.NotAfter.Format(time.DateOnly))
	case now.Before(cert.NotBefore):
		x.add(Fail, c.Source.CertFile, "see whether this machine's clock is right", "it begins on %s: clients refuse it until then", cert.NotBefore.Format(time.DateOnly))
	case cert.NotAfter.Sub(now) < soon:
		x.add(Warn, c.Source.CertFile, "renew it and replace both files", "it ends on %s", cert.NotAfter.Format(time.DateOnly))
	default:
		x.ok(c.Source.CertFile, "for %s, until %s", strings.Join(some(cert.DNSNames, 4), " "), cert.NotAfter.Format(time.DateOnly))
	}
}

// certificateIn is the first certificate in a file.
func certificateIn(name string) (*x509.Certificate, error) {
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxFile {
		err = errors.New("it is larger than a file of certificates")
	}
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(name)
	for err == nil {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("there is no certificate in it")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, err
}

// localCA looks at the root of the local CA.
func (x *examination) localCA() {
	const object = "local CA"
	name := filepath.Join(x.Plan.Settings.StateDir, ca.RootFile)
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		x.ok(object, "it is made when quaymaster starts with this configuration")
		return
	}
	if errors.Is(err, fs.ErrPermission) {
		x.ok(object, "%s may be read by its owner alone", name)
		return
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		x.add(Warn, object, "chmod 600 "+name, "others than its owner may use %s (mode %04o): they can pretend to be any site", name, info.Mode().Perm())
	}
	root, err := certificateIn(name)
	switch {
	case errors.Is(err, fs.ErrPermission):
		x.ok(object, "%s may be read by its owner alone", name)
	case err != nil:
		x.add(Fail, object, fmt.Sprintf("put %s back from a backup; if there is none: mv %s %s.bad, restart quaymaster, and run \"quaymaster trust\" wherever the old root was trusted", name, name, name), "%s: %v", name, err)
	case time.Until(root.NotAfter) < soon:
		x.add(Fail, object, fmt.Sprintf("mv %s %s.old, restart quaymaster, and run \"quaymaster trust\"", name, name), "its root ends on %s", root.NotAfter.Format(time.DateOnly))
	case x.trusts(root):
		x.ok(object, "the system trusts its root, until %s", root.NotAfter.Format(time.DateOnly))
	default:
		x.ok(object, "its root is good until %s; the system does not trust it (sudo quaymaster trust)", root.NotAfter.Format(time.DateOnly))
	}
}

// trusts reports whether the system's store has the root.
func (x *examination) trusts(root *x509.Certificate) bool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return false
	}
	_, err = root.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// dns looks up the names that a CA will look up.
func (x *examination) dns() {
	names := x.validated()
	if len(names) == 0 {
		return
	}
	lookup := x.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	ctx, cancel := context.WithTimeout(context.Background(), dnsWithin)
	defer cancel()
	type answer struct {
		found []string
		err   error
	}
	answers := make([]answer, len(names))
	var all sync.WaitGroup
	for i, n := range names {
		all.Go(func() { answers[i].found, answers[i].err = lookup(ctx, n+".") })
	}
	all.Wait()
	for i, n := range names {
		x.looked(n, answers[i].found, answers[i].err)
	}
}

// validated are the names whose addresses a CA comes to, some of them.
func (x *examination) validated() []string {
	if x.Plan == nil || x.Plan.Settings.ACME == nil || !slices.ContainsFunc(x.Plan.Settings.ACME.Challenges, func(c string) bool { return c != "dns-01" }) {
		return nil
	}
	var out []string
	for _, c := range x.Plan.Certificates {
		if c.Source.Kind != plan.CertAuto || c.OnDemand || len(c.Names) != 1 || strings.HasPrefix(c.Names[0], "*") || plan.IsIP(c.Names[0]) {
			continue
		}
		if out = append(out, c.Names[0]); len(out) == maxLooked {
			break
		}
	}
	return out
}

// looked judges what a name resolves to.
func (x *examination) looked(name string, found []string, err error) {
	var no *net.DNSError
	switch {
	case errors.As(err, &no) && no.IsNotFound:
		x.add(Warn, name, "add an A or AAAA record for "+name+" where its zone is kept", "it has no address: no CA can validate it by http-01 or tls-alpn-01")
		return
	case err != nil:
		x.add(Warn, name, "see whether this machine can resolve names: getent hosts "+name, "it cannot be looked up: %v", err)
		return
	}
	public := func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err == nil && a.IsGlobalUnicast() && !a.IsPrivate()
	}
	if x.Plan.Settings.ACME.CARoot == "" && !slices.ContainsFunc(found, public) {
		x.add(Warn, name, "give it a public address, or a certificate by dns-01 or of the local CA (certificate: internal)", "it resolves to %s alone, where no public CA can come", strings.Join(some(found, 4), " "))
		return
	}
	x.ok(name, "resolves to %s", strings.Join(some(found, 4), " "))
}

// clock looks at whether this machine knows the time: certificates have a beginning and an end.
func (x *examination) clock() {
	if x.host.root != "" {
		return // recorded files have no clock
	}
	const object = "clock"
	now := time.Now()
	synced, known := synchronised()
	switch {
	case now.Year() < 2025:
		x.add(Fail, object, "timedatectl set-ntp true, or set it by hand: date -s", "it says %s: every certificate seems not to have begun", now.Format(time.DateOnly))
	case known && !synced:
		x.add(Warn, object, "timedatectl set-ntp true, or install chrony; in a virtual machine see the host's", "it says %s, and nothing keeps it right: certificates are refused by and to machines whose clock is far off", now.Format(time.RFC3339))
	default:
		x.ok(object, "%s", now.Format(time.RFC3339))
	}
}
