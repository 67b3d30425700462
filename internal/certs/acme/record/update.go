package record

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	updateTime = 15 * time.Second // for one message
	recordTTL  = 60
	tsigFudge  = 300 // seconds that clocks may differ
)

// An Update makes and removes records by dynamic updates (RFC 2136), signed with TSIG (RFC 8945) where there is a key.
type Update struct {
	Server string // host:port of the primary
	Zone   string // "" = the server is asked
	Key    string // name of the key, or "ALGORITHM:name"; hmac-sha256 without one; "" = unsigned
	Secret string // base64
}

// Present adds the record to those of its name.
func (u *Update) Present(ctx context.Context, r Record) error {
	return u.send(ctx, r, "add", (*dns.Msg).Insert)
}

// Cleanup removes the record and no other.
func (u *Update) Cleanup(ctx context.Context, r Record) error {
	return u.send(ctx, r, "remove", (*dns.Msg).Remove)
}

func (u *Update) send(ctx context.Context, r Record, what string, change func(*dns.Msg, []dns.RR)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*updateTime)
	defer cancel()
	wrong := func(err error) error {
		return fmt.Errorf("%s TXT %s by update of %s: %w", what, r.Name, u.Server, err)
	}
	zone, err := u.zone(ctx, r.Name)
	if err != nil {
		return wrong(err)
	}
	m := new(dns.Msg)
	m.SetUpdate(zone)
	change(m, []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: dns.Fqdn(r.Name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: recordTTL},
		Txt: []string{r.Value},
	}})
	reply, err := u.exchange(ctx, m)
	if err != nil {
		return wrong(err)
	}
	if reply.Rcode != dns.RcodeSuccess {
		return wrong(refused(reply, zone))
	}
	return nil
}

// refused says what the server answered, and what to do about it.
func refused(reply *dns.Msg, zone string) error {
	text := map[int]string{
		dns.RcodeRefused:       "let the key update the zone there (update-policy, allow-update)",
		dns.RcodeNotAuth:       "see that the key's name, algorithm and secret are the same on both sides, the clocks agree, and the server is the zone's primary",
		dns.RcodeNotZone:       "the name is not in this zone; set zone",
		dns.RcodeServerFailure: "see the server's log; often it may not write the zone's file",
	}[reply.Rcode]
	name := dns.RcodeToString[reply.Rcode]
	if t := reply.IsTsig(); t != nil && t.Error != dns.RcodeSuccess {
		name += ", " + dns.RcodeToString[int(t.Error)]
	}
	if text == "" {
		return fmt.Errorf("zone %s: the server says %s", zone, name)
	}
	return fmt.Errorf("zone %s: the server says %s; %s", zone, name, text)
}

// zone is the one that was given, or the one in which the server has the name.
func (u *Update) zone(ctx context.Context, name string) (string, error) {
	if u.Zone != "" {
		return dns.Fqdn(u.Zone), nil
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeSOA)
	m.RecursionDesired = false
	reply, err := u.exchange(ctx, m)
	if err != nil {
		return "", err
	}
	for _, rr := range append(reply.Answer, reply.Ns...) {
		if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(soa.Hdr.Name, dns.Fqdn(name)) {
			return soa.Hdr.Name, nil
		}
	}
	return "", fmt.Errorf("the server does not say which zone has the name (%s); set zone", dns.RcodeToString[reply.Rcode])
}

// exchange asks over TCP, where an answer is never cut and a server that is not there says so.
func (u *Update) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	c := &dns.Client{Net: "tcp", Timeout: updateTime}
	if u.Key != "" {
		name, algorithm := u.key()
		if dns.IsFqdn(algorithm) && !known(algorithm) {
			return nil, fmt.Errorf("TSIG algorithm %s is not known; take one of hmac-sha224, hmac-sha256, hmac-sha384, hmac-sha512", strings.TrimSuffix(algorithm, "."))
		}
		c.TsigSecret = map[string]string{name: u.Secret}
		m.SetTsig(name, algorithm, tsigFudge, time.Now().Unix())
	}
	reply, _, err := c.ExchangeContext(ctx, m, u.Server)
	var op *net.OpError
	switch {
	case err == nil:
		return reply, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &op):
		return nil, err
	case reply != nil && reply.Rcode != dns.RcodeSuccess: // an error is often not signed
		return reply, nil
	case errors.Is(err, dns.ErrSig), errors.Is(err, dns.ErrKeyAlg), errors.Is(err, dns.ErrTime), errors.Is(err, dns.ErrNoSig), errors.Is(err, dns.ErrSecret):
		return nil, fmt.Errorf("the answer is not signed with our key: %w", err)
	}
	return nil, err
}

// key is the key's name and algorithm.
func (u *Update) key() (name, algorithm string) {
	algorithm, name, ok := strings.Cut(u.Key, ":")
	if !ok {
		return dns.CanonicalName(u.Key), dns.HmacSHA256
	}
	return dns.CanonicalName(name), dns.CanonicalName(algorithm)
}

func known(algorithm string) bool {
	switch algorithm {
	case dns.HmacSHA1, dns.HmacSHA224, dns.HmacSHA256, dns.HmacSHA384, dns.HmacSHA512:
		return true
	}
	return false
}
