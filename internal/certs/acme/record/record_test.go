package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
	"github.com/quaymaster/quaymaster/internal/plan"
)

var example = Record{Name: "_acme-challenge.example.com", Value: "va-l_ue"}

// hook is a shell script.
func hook(t *testing.T, body string) *Hook {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hook.sh")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return New(plan.DNSProvider{Exec: file}).(*Hook)
}

func TestHookIsCalledAsItsContractSays(t *testing.T) {
	t.Setenv("DNS_TOKEN", "for the hook")
	t.Setenv("LISTEN_FDS", "3")
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	h := hook(t, `{ echo "$# $1 $2 $3"; pwd; cat; echo "$QUAYMASTER_ACTION $QUAYMASTER_RECORD $QUAYMASTER_VALUE $DNS_TOKEN <$LISTEN_FDS$NOTIFY_SOCKET>"; } >> said`)
	if err := errors.Join(h.Present(t.Context(), example), h.Cleanup(t.Context(), example)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(h.Program)
	said, err := os.ReadFile(dir + "/said")
	want := ""
	for _, action := range []string{"present", "cleanup"} {
		want += fmt.Sprintf("3 %[1]s _acme-challenge.example.com va-l_ue\n%[2]s\n%[1]s _acme-challenge.example.com va-l_ue for the hook <>\n", action, dir)
	}
	if err != nil || string(said) != want {
		t.Errorf("%v\n%s, want\n%s", err, said, want)
	}
}

func TestHookThatFailsSaysWhy(t *testing.T) {
	h := hook(t, `i=0; while [ $i -lt 500 ]; do echo "line $i of much"; i=$((i+1)); done; echo "the token is wrong" >&2; exit 7`)
	err := h.Present(t.Context(), example)
	if err == nil || !strings.Contains(err.Error(), "hook.sh present _acme-challenge.example.com: exit status 7") || !strings.Contains(err.Error(), "the token is wrong") {
		t.Error(err)
	}
	if strings.Contains(err.Error(), "line 0 of") || len(err.Error()) > 2*maxSaid {
		t.Errorf("the output is not bounded: %d bytes", len(err.Error()))
	}
	if err := (&Hook{Program: "/nowhere/hook"}).Present(t.Context(), example); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

func TestHookThatLeavesAProcessBehindHasDoneItsWork(t *testing.T) {
	h := hook(t, "sleep 1000 & echo $! > child")
	if err := h.Present(t.Context(), example); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Dir(h.Program) + "/child")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// gone wants a process to be no more.
func gone(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); syscall.Kill(pid, 0) == nil; {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(stat), ") Z ") {
			return // dead, and waits for whoever reaps orphans here
		}
		if time.Now().After(end) {
			t.Fatalf("process %d lives on", pid)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestHookThatDoesNotEndIsKilledWithAllItStarted(t *testing.T) {
	h := hook(t, "sleep 1000 & echo $! > child\nwait")
	child := filepath.Dir(h.Program) + "/child"
	h.Time = 2 * time.Second
	if err := h.Present(t.Context(), example); err == nil || !strings.Contains(err.Error(), "within 2s and was killed") {
		t.Error(err)
	}
	gone(t, child)
	if err := os.Remove(child); err != nil {
		t.Fatal(err)
	}
	h.Time = 0
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if b, err := os.ReadFile(child); err == nil && len(b) > 0 {
				cancel()
				return
			}
			<-time.After(5 * time.Millisecond)
		}
	}()
	if err := h.Present(ctx, example); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	gone(t, child)
}

func provider(p *acmetest.Primary, zone, key, secret string) Provider {
	return New(plan.DNSProvider{Server: p.Addr, Zone: zone, TSIGKey: key, TSIGSecret: plan.Secret(secret)})
}

func TestUpdatesAddAndRemoveOneRecordAlone(t *testing.T) {
	for _, zone := range []string{"example.com", ""} {
		p := acmetest.NewPrimary(t, "example.com")
		u := provider(p, zone, "hmac-sha256:"+acmetest.KeyName, acmetest.KeySecret)
		other := Record{example.Name, "another"}
		if err := errors.Join(u.Present(t.Context(), example), u.Present(t.Context(), other)); err != nil {
			t.Fatal(err)
		}
		if got := p.TXT(example.Name); !slices.Equal(got, []string{"va-l_ue", "another"}) {
			t.Errorf("zone %q: %q", zone, got)
		}
		if err := errors.Join(u.Cleanup(t.Context(), example), u.Cleanup(t.Context(), example)); err != nil {
			t.Error(err)
		}
		if got := p.TXT(example.Name); !slices.Equal(got, []string{"another"}) {
			t.Errorf("zone %q: left %q", zone, got)
		}
	}
}

func TestUpdatesThatAreRefusedSayWhatToDo(t *testing.T) {
	p := acmetest.NewPrimary(t, "example.com")
	for what, c := range map[string]struct{ zone, key, secret, want string }{
		"no key":           {"example.com", "", "", "the server says REFUSED; let the key update the zone"},
		"another key":      {"example.com", "other", acmetest.KeySecret, "NOTAUTH"},
		"another secret":   {"example.com", acmetest.KeyName, "b3RoZXI=", "NOTAUTH"},
		"another zone":     {"example.org", acmetest.KeyName, acmetest.KeySecret, "zone example.org.: the server says NOTAUTH"},
		"no algorithm":     {"example.com", "hmac-md9:" + acmetest.KeyName, acmetest.KeySecret, "TSIG algorithm hmac-md9 is not known"},
		"a name elsewhere": {"", acmetest.KeyName, acmetest.KeySecret, "set zone"},
	} {
		r := example
		if what == "a name elsewhere" {
			r.Name = "_acme-challenge.example.net"
		}
		err := provider(p, c.zone, c.key, c.secret).Present(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "add TXT "+r.Name+" by update of "+p.Addr) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
	down := New(plan.DNSProvider{Server: "127.0.0.1:1", Zone: "example.com"})
	if err := down.Present(t.Context(), example); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if len(p.Seen()) != 0 {
		t.Errorf("%q", p.Seen())
	}
}

func TestCheckWaitsForEveryServerAndNotForEver(t *testing.T) {
	one, two := acmetest.NewPrimary(t, "example.com"), acmetest.NewPrimary(t, "example.com")
	servers := []string{one.Addr, two.Addr}
	c := Check{Servers: func(context.Context, string) ([]string, error) { return servers, nil }, Every: 5 * time.Millisecond, Most: 300 * time.Millisecond}
	add := func(p *acmetest.Primary) {
		if err := provider(p, "example.com", acmetest.KeyName, acmetest.KeySecret).Present(t.Context(), example); err != nil {
			t.Fatal(err)
		}
	}
	add(one)
	if err := c.Wait(t.Context(), example); err == nil || !strings.Contains(err.Error(), two.Addr+" does not have it") {
		t.Error(err)
	}
	add(two)
	c.Most = 30 * time.Second
	if err := c.Wait(t.Context(), example); err != nil {
		t.Error(err)
	}
	servers = []string{"127.0.0.1:1", two.Addr} // one that is down holds up nobody
	if err := c.Wait(t.Context(), example); err != nil {
		t.Error(err)
	}
	servers = nil
	if err := c.Wait(t.Context(), example); err == nil || !strings.Contains(err.Error(), "no server is known") {
		t.Error(err)
	}
}
