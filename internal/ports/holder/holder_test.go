package holder

import (
	"net/netip"
	"os"
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

func TestStopSaysTheStepThatLasts(t *testing.T) {
	other, id := os.Geteuid()+1000, strings.Repeat("0123456789ab", 5)+"cdef"
	at := netip.MustParseAddrPort("0.0.0.0:8080")
	for want, h := range map[string]Holder{
		`stop it with "kill 812"`:                                                                                                    {Unit: "session-3.scope"},
		`stop it with "systemctl stop nginx"`:                                                                                        {Unit: "nginx.service"},
		`stop it with "systemctl stop run.scope"`:                                                                                    {Unit: "run.scope"},
		`stop it with "systemctl stop ssh.socket ssh.service"`:                                                                       {Unit: "ssh.service", sockets: []string{"ssh.socket"}},
		`stop it as user ann with "systemctl --user stop caddy"`:                                                                     {Unit: "caddy.service", userUnit: true, UID: other},
		`stop it with "podman stop web"`:                                                                                             {Unit: "podman.service", Container: "web", Engine: "podman", UID: os.Geteuid()},
		`stop it as user ann with "podman stop web"`:                                                                                 {Container: "web", Engine: "podman", UID: other},
		`stop it with "podman pod stop 0123456789ab"`:                                                                                {Container: "0123456789ab-infra", Engine: "podman"},
		`stop it with "systemctl stop web"`:                                                                                          {Unit: "web.service", Container: "systemd-web", Engine: "podman"},
		`find its container with "docker ps --filter publish=8080" and stop that`:                                                    {Container: "172.17.0.2", Engine: "docker", Helper: "docker-proxy", Unit: "docker.service"},
		`find its container with "podman ps" and stop that, as user ann`:                                                             {Engine: "podman", Helper: "rootlessport", UID: other},
		`stop it with "kubectl -n shop delete pod web-1", or stop the workload that would make it anew`:                              {Container: "web", Engine: "containerd", pod: "shop/web-1"},
		`find its pod with "crictl ps --id 0123456789ab" and delete that, since a kubelet starts what is only stopped`:               {ContainerID: id, Container: id[:12], Engine: "containerd"},
		`stop it with "sv stop web", since runsv would start it again`:                                                               {starter: &starter{"runsv", `"sv stop web"`}},
		`stop it with "quaymaster stop" before you start this one, or replace its program while it serves with "quaymaster upgrade"`: {quaymaster: true},
		`stop it with "docker stop 'a; reboot '\''x'"`:                                                                               {Container: "a; reboot 'x", Engine: "docker"},
	} {
		h.Pid, h.User, h.Addr = 812, "ann", at
		if got := h.Stop(); got != want {
			t.Errorf("%+v:\n%s, want\n%s", h, got, want)
		}
	}
	for want, h := range map[string]Holder{
		`stop it with "systemctl stop cups.socket"`:                                            {Pid: 1, Unit: "init.scope", sockets: []string{"cups.socket"}},
		`find its socket unit with "systemctl list-sockets" and stop that`:                     {Pid: 1, Unit: "init.scope"},
		`find its socket unit with "systemctl --user list-sockets" and stop that, as user ann`: {Pid: 900, Unit: "init.scope", userUnit: true, UID: other, User: "ann"},
		"": {UID: 5},
	} {
		if got := h.Stop(); got != want {
			t.Errorf("%+v:\n%s, want\n%s", h, got, want)
		}
	}
}

func TestStringIsASentence(t *testing.T) {
	since := time.Now().Add(-73 * time.Hour)
	for want, h := range map[string]Holder{
		"nginx (pid 812, user www-data, nginx.service) for 3 d":                                     {Unit: "nginx.service", name: "nginx"},
		"docker-proxy (pid 812, user www-data, docker container web 0123456789ab) for 3 d":          {Container: "web", ContainerID: "0123456789abcdef", Engine: "docker", name: "docker-proxy"},
		"app (pid 812, user www-data, containerd container 0123456789ab of pod shop/web-1) for 3 d": {Container: "0123456789ab", ContainerID: "0123456789abcdef", Engine: "containerd", pod: "shop/web-1", name: "app"},
		"another quaymaster (pid 812, user www-data, state folder /var/lib/q) for 3 d":              {quaymaster: true, StateDir: "/var/lib/q", name: "quaymaster"},
	} {
		h.Pid, h.User, h.Started = 812, "www-data", since
		if got := h.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestParseLsof(t *testing.T) {
	out := "p812\ncnginx\nu33\nLwww-data\nf6\nn*:443\nf7\nn127.0.0.1:80\nf8\nn127.0.0.1:80\np9\ncnode\nu0\nLroot\nn[::1]:3000\n\nnbroken\n" +
		"p7\ncgvproxy\nu501\nLann\nn*:8080\np8\ncx\nn10.0.0.1:53->10.0.0.2:99\n"
	got := parseLsof("tcp", out, func(netip.AddrPort) bool { return true })
	if len(got) != 4 || got[0].Pid != 812 || got[0].Addr.String() != "[::]:443" || got[1].Addr.String() != "127.0.0.1:80" || got[2].User != "root" || got[2].Command != "node" {
		t.Errorf("parseLsof = %+v", got)
	}
	if h := got[3]; h.Helper != "gvproxy" || h.Engine != "podman" || !strings.Contains(h.Stop(), "podman ps") {
		t.Errorf("gvproxy is %+v: %s", h, h.Stop())
	}
}

func TestWordsOfStrangersAreMadeFitToShow(t *testing.T) {
	if got, want := clean(" a\x1b[31m\nb\x00c\xff "), "a?[31m b c?"; got != want {
		t.Errorf("clean = %q, want %q", got, want)
	}
	for _, long := range []string{strings.Repeat("é", 500), strings.Repeat("\xf0\x9f\x98\x80", 1<<20)} {
		if got := clean(long); len([]rune(got)) != maxCommand || !strings.HasSuffix(got, "...") {
			t.Errorf("clean made %q", got)
		}
	}
}

func TestHelperIsKnownByItsExecutable(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"/usr/bin/docker-proxy", "x"}:                         "docker-proxy",
		{"/usr/lib/podman/rootlessport", "rootlessport-child"}: "rootlessport",
		{"", "rootlessport-child"}:                             "rootlessport",
		{"", "containers-rootlessport"}:                        "rootlessport",
		{"/usr/bin/passt.avx2", "pasta"}:                       "passt",
		{"/home/eve/evil", "docker-proxy"}:                     "", // it only calls itself so
		{"/usr/sbin/nginx", "nginx"}:                           "",
	} {
		if got, _ := helperOf(in[0], in[1]); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
