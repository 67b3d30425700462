package acme

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
	"github.com/quaymaster/quaymaster/internal/certs/acme/record"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The challenges (RFC 8555 section 8, RFC 8737).
const (
	http01    = "http-01"
	tlsALPN01 = "tls-alpn-01"
	dns01     = "dns-01"
)

// cleanTime bounds the removal of a record, which is done when we stop, too.
const cleanTime = 20 * time.Second

// A way is a challenge that can be answered for a name at present.
type way = authority.Challenge

// ways are those for e, in the order of the configuration. When there is none, or the first is waited for, it says when to
// look again. a.mu is held.
func (a *Issuer) ways(e *entry, ports map[string]string, now time.Time) (list []way, again time.Duration) {
	var not []string
	for _, c := range a.set.Challenges {
		if why := a.unfit(e.name, c); why != "" {
			not = append(not, c+": "+why)
			continue
		}
		if why := ports[c]; why != "" {
			if young := now.Sub(a.since); len(list) == 0 && young >= 0 && young < settle {
				return nil, lookBlocked // it is about to accept, most likely: at start ports come last
			}
			not = append(not, c+": "+why)
			continue
		}
		list = append(list, way{Type: c, Present: a.presenter(c, a.provider)})
	}
	if len(list) > 0 {
		a.say(e, not, list[0].Type)
		return list, 0
	}
	a.stuck(e, "no challenge can be used: "+strings.Join(not, "; "))
	if now.Sub(a.since) > time.Minute {
		return nil, lookLong
	}
	return nil, lookBlocked
}

// unfit says why a challenge can never be used for a name as things are set.
func (a *Issuer) unfit(name, challenge string) string {
	wild := strings.HasPrefix(name, "*.")
	switch {
	case wild && challenge != dns01:
		return "it cannot prove a wildcard"
	case challenge == dns01 && plan.IsIP(name):
		return "it cannot prove an address"
	case challenge == dns01 && a.provider == nil:
		return "acme.dns is not set"
	}
	return ""
}

// say logs why a challenge cannot be used for the order that begins. a.mu is held.
func (a *Issuer) say(e *entry, not []string, instead string) {
	why := ""
	for _, n := range not {
		if strings.Contains(n, "does not accept") {
			why += n + "; "
		}
	}
	if why = strings.TrimSuffix(why, "; "); why != "" {
		a.o.Log.Warn("a challenge cannot be used, another is", "host", e.name, "challenge", instead, "reason", why)
	}
	e.blocked = ""
}

// stuck notes that no order can begin, and tells so once for each reason. a.mu is held.
func (a *Issuer) stuck(e *entry, why string) {
	if e.blocked == why {
		return
	}
	e.blocked = why
	a.o.Log.Warn("no order can begin", "host", e.name, "reason", why)
	a.o.Events("certificate.failing", e.name, why)
}

// presenter makes the answer to a challenge available.
func (a *Issuer) presenter(challenge string, p record.Provider) func(context.Context, acme.Challenge) (func(), error) {
	switch challenge {
	case http01:
		return func(_ context.Context, ch acme.Challenge) (func(), error) {
			return a.answers.Token(ch.Token, ch.KeyAuthorization), nil
		}
	case tlsALPN01:
		return func(_ context.Context, ch acme.Challenge) (func(), error) {
			c, err := acmez.TLSALPN01ChallengeCert(ch)
			if err != nil {
				return nil, err
			}
			return a.answers.Order(sniOf(ch.Identifier), c), nil
		}
	}
	return func(ctx context.Context, ch acme.Challenge) (func(), error) { return a.publish(ctx, p, ch) }
}

// sniOf is the server name under which a CA asks: an address has one, too (RFC 8738 section 6).
func sniOf(id acme.Identifier) string {
	if id.Type == "ip" && net.ParseIP(id.Value) != nil {
		if arpa, err := dns.ReverseAddr(id.Value); err == nil {
			return strings.TrimSuffix(arpa, ".")
		}
	}
	return strings.ToLower(id.Value)
}

// publish makes the record of dns-01, and waits until it is to be seen, or seems never to be.
func (a *Issuer) publish(ctx context.Context, p record.Provider, ch acme.Challenge) (func(), error) {
	r := record.Record{Name: ch.DNS01TXTRecordName(), Value: ch.DNS01KeyAuthorization()}
	end := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		if err := p.Cleanup(ctx, r); err != nil {
			a.o.Log.Warn("a record of dns-01 is left behind: remove it by hand", "record", r.Name, "value", r.Value, "err", err)
		}
	}
	if err := p.Present(ctx, r); err != nil {
		end() // it may have been made all the same
		return nil, err
	}
	if err := a.o.Check.Wait(ctx, r); err != nil && ctx.Err() == nil {
		a.o.Log.Warn("the CA is asked to look for a record that we do not see everywhere", "record", r.Name, "err", err)
	}
	return end, nil
}
