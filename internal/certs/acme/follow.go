package acme

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/certs/acme/demand"
	"github.com/quaymaster/quaymaster/internal/certs/acme/record"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// Load reads what the store has for names, and what set refers to. It shows nothing of it and contacts nobody.
func (a *Issuer) Load(set *plan.ACME, names []*plan.Certificate) error {
	next := roots{}
	if set != nil && set.CARoot != "" {
		text, err := os.ReadFile(set.CARoot)
		if err != nil {
			return fmt.Errorf("acme.ca_root: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(text) {
			return fmt.Errorf("acme.ca_root: %s holds no certificate in PEM", set.CARoot)
		}
		sum := sha256.Sum256(text)
		next = roots{set.CARoot, hex.EncodeToString(sum[:]), pool}
	}
	now := *a.index.Load()
	read := map[string]*entry{}
	for _, c := range names {
		if name := single(c); name != "" && now[name] == nil && read[name] == nil {
			read[name] = a.read(name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded = read
	if set != nil {
		a.roots = next
	}
	return nil
}

// single is the name of a certificate that the plan wants; "" when it is a pattern of names on demand.
func single(c *plan.Certificate) string {
	if c.OnDemand || len(c.Names) != 1 {
		return ""
	}
	return c.Names[0]
}

// Follow makes set and names the wish. set is nil when there are no names. What Load read of them is served from now on.
func (a *Issuer) Follow(set *plan.ACME, names []*plan.Certificate) {
	now := a.o.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	old := *a.index.Load()
	next := make(map[string]*entry, len(names))
	a.patterns = nil
	for _, c := range names {
		name := single(c)
		if name == "" {
			a.patterns = append(a.patterns, c.Names...)
			continue
		}
		e := old[name]
		if e == nil || e.demand {
			if e = a.loaded[name]; e == nil {
				e = &entry{name: name}
			}
			if was := old[name]; was != nil {
				e.inherit(was) // had on demand until now: what is stored is no newer
			}
		}
		e.users = c.Users
		next[name] = e
	}
	for name, e := range old {
		if e.demand && next[name] == nil && a.covered(name) {
			next[name] = e
		} else if next[name] != e { // nobody wants it any more
			if e.cancel != nil {
				e.cancel()
			}
			e.release()
		}
	}
	a.loaded = nil
	a.index.Store(&next)
	if !maps.Equal(old, next) || a.set != set {
		a.since = now
	}
	a.settings(set)
	a.stir()
}

// settings takes the CAs and the provider of set; those that are the same stay, with what they know. a.mu is held.
func (a *Issuer) settings(set *plan.ACME) {
	a.set = set
	if set == nil {
		a.gate.Follow(nil)
		return // orders come to their end
	}
	a.gate.Follow(set.OnDemand)
	a.provider = record.New(set.DNS)
	was := append(slices.Clone(a.cas), slices.Collect(maps.Values(a.staging))...)
	find := func(i plan.Issuer) *authority.CA {
		for _, c := range was {
			if c.Issuer == i && c.Trust == a.roots.digest {
				return c
			}
		}
		return authority.New(i, authority.Options{
			Log: a.o.Log, Store: a.store, Roots: a.roots.pool, Trust: a.roots.digest, Now: a.o.Clock.Now,
		})
	}
	a.cas, a.staging = nil, map[string]*authority.CA{}
	for _, i := range set.Issuers {
		a.cas = append(a.cas, find(i))
		if d := a.o.Staging[i.Directory]; d != "" {
			a.staging[i.Directory] = find(plan.Issuer{Directory: d, Email: i.Email})
		}
	}
	for _, c := range was {
		if !slices.Contains(a.cas, c) && !slices.Contains(slices.Collect(maps.Values(a.staging)), c) {
			c.Close()
		}
	}
}

// covered reports whether a pattern of the plan wants a name to be had on demand. a.mu is held.
func (a *Issuer) covered(name string) bool {
	return slices.ContainsFunc(a.patterns, func(p string) bool { return demand.Under(p, name) })
}

// hostName reports whether a name can be one of a host, in lower case (RFC 1123 section 2.1), of two labels at least.
func hostName(name string) bool {
	if len(name) > 253 || !strings.Contains(name, ".") || plan.IsIP(name) {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}
