package holder

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestFindingNothingIsNoError(t *testing.T) {
	got, err := Find(func(netip.AddrPort) bool { return false }, nil)
	if len(got) != 0 || err != nil {
		t.Errorf("Find = %v, %v", got, err)
	}
}

func TestStopSaysTheCommandThatFits(t *testing.T) {
	for want, h := range map[string]Holder{
		`stop it with "systemctl stop nginx"`: {Pid: 812, Unit: "nginx.service"},
		`stop it with "podman stop web"`:      {Pid: 812, Unit: "podman.service", Container: "web", engine: "podman"},
		`stop it with "kill 812"`:             {Pid: 812, Container: "172.17.0.2", Unit: "docker.service"},
	} {
		if got := h.Stop(); got != want {
			t.Errorf("%+v: %s, want %s", h, got, want)
		}
	}
	h := Holder{Pid: 812, User: "www-data", Unit: "nginx.service", Started: time.Now().Add(-73 * time.Hour), name: "nginx"}
	if got, want := h.String(), "nginx (pid 812, user www-data, nginx.service) for 3 d"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestParseLsof(t *testing.T) {
	out := "p812\ncnginx\nu33\nLwww-data\nf6\nn*:443\nf7\nn127.0.0.1:80\nf8\nn127.0.0.1:80\np9\ncnode\nu0\nLroot\nn[::1]:3000\n\nnbroken\n"
	got := parseLsof(out, func(netip.AddrPort) bool { return true })
	if len(got) != 3 || got[0].Pid != 812 || got[0].Addr.String() != "[::]:443" || got[1].Addr.String() != "127.0.0.1:80" || got[2].User != "root" || got[2].Command != "node" {
		t.Errorf("parseLsof = %+v", got)
	}
}

func TestWordsOfStrangersAreMadeFitToShow(t *testing.T) {
	if got, want := clean(" a\x1b[31m\nb\x00c "), "a?[31m b c"; got != want {
		t.Errorf("clean = %q, want %q", got, want)
	}
	if got := clean(strings.Repeat("é", 500)); len([]rune(got)) != maxCommand || !strings.HasSuffix(got, "...") {
		t.Errorf("clean made %q", got)
	}
}
