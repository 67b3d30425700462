package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// door is where clients of one name come in. What is left out of the address is compared by Overlaps.
type door struct {
	network plan.Network
	port    uint16
	text    string // of a unix socket or a socket of systemd
	domain  string // "" for any
	clients string
}

// guest is a route that takes connections at an address.
type guest struct {
	*ref
	addr plan.Addr
}

// policies finds hosts for which routes of one port disagree about TLS. Only client_ips may tell such routes apart: what
// is done with TLS is decided before a request is seen.
func (l *load) policies(routes []*ref) {
	first := map[door][]guest{}
	told := map[[2]*ref]bool{}
	for _, r := range routes {
		l.breathe()
		if r.route.TLS == nil {
			continue
		}
		clients := clientsOf(r.route.Match.Clients)
		domains := r.route.Match.Domains
		if len(domains) == 0 {
			domains = []string{""}
		}
		for _, a := range r.route.Match.Ports {
			for _, d := range domains {
				l.breathe()
				at := door{a.Network, a.Port, a.Path + a.Name, d, clients}
				other, same := meets(first[at], r, a)
				if !same {
					first[at] = append(first[at], guest{r, a})
				}
				if other != nil && !told[[2]*ref{other, r}] {
					told[[2]*ref{other, r}] = true
					l.disagree(r, other, a, d)
				}
			}
		}
	}
}

func clientsOf(list []netip.Prefix) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(p.String() + " ")
	}
	return b.String()
}

// meets finds a route that takes connections at a and treats TLS in another way. Same is whether one is known already that
// takes all connections at a and treats them as r does.
func meets(known []guest, r *ref, a plan.Addr) (other *ref, same bool) {
	for _, k := range known {
		switch {
		case !a.Overlaps(k.addr):
		case difference(k.route.TLS, r.route.TLS) == "":
			same = same || k.addr.Covers(a)
		case k.key != r.key: // else they are twins, which is said elsewhere
			other = k.ref
		}
	}
	return other, same
}

// difference is the first key in which two ways to treat TLS differ, "" for none.
func difference(a, b *plan.TLS) string {
	switch {
	case a.Ends() != b.Ends():
		return "mode"
	case !a.Ends():
		return ""
	case a.Certificate != b.Certificate:
		return "certificate"
	case a.ClientAuth != b.ClientAuth:
		return "client_auth"
	case a.MinVersion != b.MinVersion:
		return "min_version"
	case !a.SamePolicy(b):
		return "alpn"
	}
	return ""
}

func (l *load) disagree(r, other *ref, a plan.Addr, domain string) {
	name := "any host"
	if domain != "" {
		name = domain
	}
	key := difference(other.route.TLS, r.route.TLS)
	l.errs = append(l.errs, l.at(r, r.at, fmt.Sprintf("write the same %s in both, or tell them apart by client_ips", key),
		"routes %q and %q disagree about tls.%s of %s on %s; the other one is at %s", r.name, other.name, key, name, a, place(other.pos(other.at))))
}
