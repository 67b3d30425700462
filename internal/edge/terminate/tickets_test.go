package terminate

import (
	"bytes"
	"crypto/tls"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// resumes joins a client that has been there before, and tells whether it was recognised.
func resumes(t *testing.T, p *Policy, config *tls.Config) bool {
	t.Helper()
	s, c, err, cerr := shake(t, p, config)
	if err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	defer s.Close()
	talk(t, s, c) // reads the ticket
	if s.State().DidResume != c.ConnectionState().DidResume {
		t.Fatal("the sides do not agree")
	}
	return c.ConnectionState().DidResume
}

func visitor(ca *issuer, version uint16) *tls.Config {
	return &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
}

func TestTicketsAreGoodOverReloads(t *testing.T) {
	ca := newIssuer(t, "ca")
	o := options(map[string]*tls.Certificate{"a": ca.server(t, "a.test"), "b": ca.server(t, "a.test")})
	first := prepare(t, o, nil, policy("a"), policy("b"))
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := visitor(ca, v)
		if resumes(t, first.Of(0), config) {
			t.Fatal("resumed out of nothing")
		}
		if !resumes(t, first.Of(0), config) {
			t.Errorf("%x: not resumed", v)
		}
		next := prepare(t, o, first, policy("c"), policy("a"))
		if next.Of(1) != first.Of(0) {
			t.Error("an unchanged policy is another one")
		}
		if !resumes(t, next.Of(1), config) {
			t.Errorf("%x: not resumed after a reload", v)
		}
		if resumes(t, first.Of(1), config) {
			t.Errorf("%x: a ticket of one policy opened a session of another", v)
		}
	}
}

func TestPolicyChangesWithItsAuthority(t *testing.T) {
	ca, other := newIssuer(t, "ca"), newIssuer(t, "other")
	file := ca.file(t)
	mutual := policy("a", func(t *plan.TLS) { t.ClientAuth = plan.ClientAuth{Mode: "required", CAFile: file} })
	o := options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")})
	first := prepare(t, o, nil, mutual)
	config := visitor(ca, tls.VersionTLS13)
	config.Certificates = []tls.Certificate{*ca.client(t, "ann")}
	_ = resumes(t, first.Of(0), config)
	if same := prepare(t, o, first, mutual); same.Of(0) != first.Of(0) || !resumes(t, same.Of(0), config) {
		t.Error("the same file made another policy")
	}
	b, err := os.ReadFile(other.file(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	next := prepare(t, o, first, mutual)
	if next.Of(0) == first.Of(0) {
		t.Fatal("the file is another one, the policy is not")
	}
	if _, _, err, _ := shake(t, next.Of(0), config); err == nil {
		t.Error("a certificate of the CA that is gone still opens the door")
	}
}

func TestT11_TicketsRotateByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tickets := new(Tickets)
		var seen [][32]byte
		look := func() []master {
			m := tickets.now().masters
			if len(seen) == 0 || m[0].secret != seen[len(seen)-1] {
				seen = append(seen, m[0].secret)
			}
			return m
		}
		_ = look()
		for range 4 * 20 {
			time.Sleep(2 * time.Hour)
			for i, m := range look() {
				if want := seen[len(seen)-1-i]; m.secret != want {
					t.Fatal("the secrets are not the last ones in their order")
				}
				if age := time.Since(m.since); age >= generations*rotation {
					t.Fatalf("a secret is %v old", age)
				}
			}
		}
		if len(seen) != 21 {
			t.Errorf("%d secrets in 160 hours", len(seen))
		}
		if n := len(look()); n != generations {
			t.Errorf("%d generations are kept", n)
		}
		time.Sleep(100 * time.Hour)
		if n := len(look()); n != 1 {
			t.Errorf("%d secrets after a long rest, want a new one alone", n)
		}
	})
}

func TestOldGenerationsOpen(t *testing.T) {
	ca := newIssuer(t, "ca")
	o := options(map[string]*tls.Certificate{"a": ca.server(t, "a.test")})
	p := prepare(t, o, nil, policy("a")).Of(0)
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := visitor(ca, v)
		_ = resumes(t, p, config)
		age(o.Tickets, rotation)
		was := o.Tickets.ring.Load()
		if !resumes(t, p, config) {
			t.Errorf("%x: not resumed with a secret of the generation before", v)
		}
		if o.Tickets.ring.Load() == was {
			t.Error("nothing was rotated")
		}
		// The new ticket is sealed with the new secret: it outlives the old one.
		for range generations - 1 {
			age(o.Tickets, rotation)
			if !resumes(t, p, config) {
				t.Errorf("%x: not resumed although it keeps coming back", v)
			}
		}
		age(o.Tickets, generations*rotation)
		if resumes(t, p, config) {
			t.Errorf("%x: resumed with a secret that is gone", v)
		}
	}
}

// age makes all secrets older.
func age(t *Tickets, by time.Duration) {
	old := t.now()
	next := &ring{}
	for _, m := range old.masters {
		next.masters = append(next.masters, master{m.secret, m.since.Add(-by)})
	}
	t.ring.Store(next)
}

func TestTicketsGoOverToAnotherProcess(t *testing.T) {
	ca := newIssuer(t, "ca")
	certs := map[string]*tls.Certificate{"a": ca.server(t, "a.test")}
	o := options(certs)
	old := prepare(t, o, nil, policy("a")).Of(0)
	config := visitor(ca, tls.VersionTLS13)
	_ = resumes(t, old, config)
	heir := options(certs)
	if resumes(t, prepare(t, heir, nil, policy("a")).Of(0), config) {
		t.Fatal("resumed with secrets that were not handed over")
	}
	_ = resumes(t, old, config)
	if err := heir.Tickets.Import(o.Tickets.Export()); err != nil {
		t.Fatal(err)
	}
	p := prepare(t, heir, nil, policy("b"), policy("a")).Of(1)
	if !resumes(t, p, config) {
		t.Error("not resumed with the secrets of the process before")
	}
	if !bytes.Equal(heir.Tickets.Export(), o.Tickets.Export()) {
		t.Error("what goes on is not what came")
	}
	for _, b := range [][]byte{nil, {1}, {2, 3}, append([]byte{2}, make([]byte, 40)...), append([]byte{1}, make([]byte, 41)...), append([]byte{1}, make([]byte, 5*40)...)} {
		if err := heir.Tickets.Import(b); err == nil {
			t.Errorf("%d bytes were taken", len(b))
		}
	}
	if err := heir.Tickets.Import(append([]byte{1}, make([]byte, 40)...)); err != nil { // of 1970
		t.Error(err)
	}
	if !resumes(t, p, config) {
		t.Error("secrets that open nothing took the place of good ones")
	}
}
