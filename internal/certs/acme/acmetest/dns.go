package acmetest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The key that updates are signed with.
const (
	KeyName   = "quaymaster-test."
	KeySecret = "c2VjcmV0IG9mIHRoZSB0ZXN0IGtleSwgMzIgYnl0ZXM="
)

// A Primary is the name server of one zone. Every name under it is 127.0.0.1; TXT records come and go by signed updates.
type Primary struct {
	Addr string // host:port, UDP and TCP
	Zone string

	mu      sync.Mutex
	txt     map[string][]string
	seen    []string // "add NAME VALUE" and "remove NAME VALUE"
	hidden  bool
	refused bool
}

// NewPrimary runs one until the test ends.
func NewPrimary(t testing.TB, zone string) *Primary {
	t.Helper()
	p := &Primary{Zone: dns.Fqdn(zone), txt: map[string][]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.Addr = l.Addr().String()
	keys := map[string]string{KeyName: KeySecret}
	accept := func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // updates, too
	for _, s := range []*dns.Server{
		{Listener: l, Handler: p, TsigSecret: keys, MsgAcceptFunc: accept}, {PacketConn: u, Handler: p, TsigSecret: keys, MsgAcceptFunc: accept},
	} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		over := make(chan struct{})
		go func() {
			defer close(over)
			_ = s.ActivateAndServe()
		}()
		<-up
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-over
		})
	}
	return p
}

// Seen are the updates so far.
func (p *Primary) Seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// TXT are the values of a name.
func (p *Primary) TXT(name string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.txt[dns.CanonicalName(name)])
}

// Hide makes it answer as if no record had come.
func (p *Primary) Hide(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hidden = yes
}

// Refuse makes it refuse updates.
func (p *Primary) Refuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = yes
}

// ServeDNS answers a question, or takes an update.
func (p *Primary) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	p.mu.Lock()
	if r.Opcode == dns.OpcodeUpdate {
		m.Rcode = p.update(w, r)
	} else if len(r.Question) == 1 {
		p.answer(m, r.Question[0])
	}
	p.mu.Unlock()
	if t := r.IsTsig(); t != nil && w.TsigStatus() == nil {
		m.SetTsig(t.Hdr.Name, t.Algorithm, 300, int64(t.TimeSigned))
	}
	_ = w.WriteMsg(m)
}

func (p *Primary) update(w dns.ResponseWriter, r *dns.Msg) int {
	switch {
	case r.IsTsig() == nil, p.refused:
		return dns.RcodeRefused
	case w.TsigStatus() != nil:
		return dns.RcodeNotAuth
	case len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, p.Zone):
		return dns.RcodeNotAuth
	}
	for _, rr := range r.Ns {
		txt, ok := rr.(*dns.TXT)
		if !ok {
			return dns.RcodeFormatError
		}
		name, value := dns.CanonicalName(txt.Hdr.Name), strings.Join(txt.Txt, "")
		if !dns.IsSubDomain(p.Zone, name) {
			return dns.RcodeNotZone
		}
		if txt.Hdr.Class == dns.ClassNONE {
			p.seen = append(p.seen, "remove "+name+" "+value)
			p.txt[name] = slices.DeleteFunc(p.txt[name], func(v string) bool { return v == value })
			continue
		}
		p.seen = append(p.seen, "add "+name+" "+value)
		if !slices.Contains(p.txt[name], value) {
			p.txt[name] = append(p.txt[name], value)
		}
	}
	return dns.RcodeSuccess
}

func (p *Primary) answer(m *dns.Msg, q dns.Question) {
	head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 1}
	switch q.Qtype {
	case dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{Hdr: head, A: net.IPv4(127, 0, 0, 1)})
	case dns.TypeTXT:
		if p.hidden {
			return
		}
		for _, v := range p.txt[dns.CanonicalName(q.Name)] {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: head, Txt: []string{v}})
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, &dns.SOA{
			Hdr: dns.RR_Header{Name: p.Zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1},
			Ns:  "ns." + p.Zone, Mbox: "hostmaster." + p.Zone, Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 1,
		})
	}
}

// Update adds a TXT record at a Primary, or removes it.
func Update(server string, add bool, name, value string) error {
	m := new(dns.Msg)
	m.SetUpdate(dns.Fqdn(zoneOf(server, name)))
	rr := []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{value}}}
	if add {
		m.Insert(rr)
	} else {
		m.Remove(rr)
	}
	m.SetTsig(KeyName, dns.HmacSHA256, 300, time.Now().Unix())
	c := &dns.Client{Net: "tcp", TsigSecret: map[string]string{KeyName: KeySecret}}
	reply, _, err := c.Exchange(m, server)
	if err != nil {
		return err
	}
	if reply.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("update: %s", dns.RcodeToString[reply.Rcode])
	}
	return nil
}

// zoneOf asks which zone has a name.
func zoneOf(server, name string) string {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeSOA)
	reply, _, err := new(dns.Client).Exchange(m, server)
	if err != nil || len(reply.Ns) == 0 {
		return name
	}
	return reply.Ns[0].Header().Name
}
