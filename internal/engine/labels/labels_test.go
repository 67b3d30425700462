package labels

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// web is a container that exposes 80 and publishes 8080 at port 32768 of this host.
func web(with ...string) *Container {
	c := &Container{
		Name: "web", Engine: "docker", Labels: map[string]string{},
		Ports: []Port{{Number: 80}, {Number: 8080, At: netip.MustParseAddrPort("0.0.0.0:32768")}},
		Networks: []Network{
			{Name: "back", IP: netip.MustParseAddr("172.18.0.2"), Near: true},
			{Name: "far", IP: netip.MustParseAddr("10.0.0.2")},
			{Name: "front", IP: netip.MustParseAddr("172.19.0.2"), Near: true},
			{Name: "none"},
		},
	}
	for _, l := range with {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	return c
}

func own(with ...string) *Container {
	return web(append([]string{"quaymaster.enable=true", "quaymaster.port=80"}, with...)...)
}

func theirs(with ...string) *Container {
	return web(append([]string{"traefik.enable=true"}, with...)...)
}

// short is a route in one line: name, door, hosts, paths, rank, target.
func short(r *Route) string {
	door := "tls"
	if r.Plain {
		door = "plain"
	}
	if r.Port != 0 {
		door += fmt.Sprint(":", r.Port)
	}
	if r.Alone {
		door += "!"
	}
	s := fmt.Sprintf("%s %s %s %v", r.Name, door, strings.Join(r.Hosts, ","), r.Paths)
	if r.Rank != 0 {
		s += fmt.Sprint(" #", r.Rank)
	}
	return s + " -> " + r.Target
}

func TestLabels(t *testing.T) {
	for _, c := range []struct {
		name string
		c    *Container
		want []string // routes; a refusal begins with !
	}{
		{"nothing", web(), nil},
		{"not enabled", web("quaymaster.host=a.test"), nil},
		{"switched off", own("quaymaster.enable=false", "quaymaster.host=a.test"), nil},
		{"no switch", own("quaymaster.enable=yes please"), []string{`!quaymaster.enable: "yes please" is neither true nor false`}},
		{"no host", own(), []string{"!quaymaster.host: there is no such label, and without a host there is no route"}},
		{"one host", own("quaymaster.host=A.test"), []string{"web@docker tls a.test [] -> 172.18.0.2:80"}},
		{"published", own("quaymaster.host=a.test", "quaymaster.port= 8080 "), []string{"web@docker tls a.test [] -> 127.0.0.1:32768"}},
		{"a network", own("quaymaster.host=a.test", "quaymaster.port=8080", "quaymaster.network=front"), []string{"web@docker tls a.test [] -> 172.19.0.2:8080"}},
		{"a network out of reach", own("quaymaster.host=a.test", "quaymaster.network=far"), []string{`!quaymaster.network: this host is not in network "far"`}},
		{"another network", own("quaymaster.host=a.test", "quaymaster.network=x"), []string{`!quaymaster.network: the container is not in network "x"`}},
		{"several hosts and paths", own("quaymaster.host=a.test, b.test,a.test", "quaymaster.path=/x, /y/*"), []string{"web@docker tls a.test,b.test [/x /y/*] -> 172.18.0.2:80"}},
		{
			"several doors", own("quaymaster.host=a.test,http://a.test:8081,http://b.test,https://c.test:8443"),
			[]string{"web@docker tls a.test [] -> 172.18.0.2:80", "web.2@docker plain:8081 a.test [] -> 172.18.0.2:80", "web.3@docker plain b.test [] -> 172.18.0.2:80", "web.4@docker tls:8443 c.test [] -> 172.18.0.2:80"},
		},
		{"an address", own("quaymaster.host=http://[::1]:8081, http://[::1]"), []string{"web@docker plain:8081 [::1] [] -> 172.18.0.2:80", "web.2@docker plain [::1] [] -> 172.18.0.2:80"}},
		{"an empty entry", own("quaymaster.host=a.test,,b.test"), []string{"!quaymaster.host: it has an empty entry"}},
		{"another scheme", own("quaymaster.host=ftp://a.test"), []string{`!quaymaster.host: there is no scheme "ftp"`}},
		{"a bad port of the host", own("quaymaster.host=a.test:99999"), []string{`!quaymaster.host: "99999" is no port`}},
		{"a bad port", own("quaymaster.host=a.test", "quaymaster.port=0"), []string{`!quaymaster.port: "0" is no port`}},
		{"which port", web("quaymaster.enable=1", "quaymaster.host=a.test"), []string{"!quaymaster.port: the container exposes 2 ports, so it must be said"}},
		{"a variable", own("quaymaster.host=${X}"), []string{"!quaymaster.host: labels hold no variables and name no files"}},
		{"a file", own("quaymaster.host=file:x"), []string{"!quaymaster.host: labels hold no variables and name no files"}},
		{"too long", own("quaymaster.host=" + strings.Repeat("a", maxValue+1)), []string{"!quaymaster.host: it has more than 4096 bytes"}},
		{"too many", own("quaymaster.host=" + strings.Repeat("a,", maxList) + "a"), []string{"!quaymaster.host: it lists 65 entries"}},
		{"a word that is not known", own("quaymaster.host=a.test", "quaymaster.hots=b"), []string{"!quaymaster.hots: there is no such label"}},
		{
			"routers", own("quaymaster.host=a.test", "quaymaster.admin.host=http://b.test", "quaymaster.admin.port=8080", "quaymaster.api.host=c.test", "quaymaster.api.path=/v1/*"),
			[]string{"web@docker tls a.test [] -> 172.18.0.2:80", "web:admin@docker plain b.test [] -> 127.0.0.1:32768", "web:api@docker tls c.test [/v1/*] -> 172.18.0.2:80"},
		},
		{"routers alone", own("quaymaster.x.host=a.test"), []string{"web:x@docker tls a.test [] -> 172.18.0.2:80"}},
		{"a bad router alone", own("quaymaster.x.host=a.test", "quaymaster.X.host=b.test", "quaymaster.y.hots=c", "quaymaster.z.port=80"), []string{
			"web:x@docker tls a.test [] -> 172.18.0.2:80", `!quaymaster.X.host: "X" is no name for a route`, "!quaymaster.y.hots: there is no such label", "!quaymaster.z.host: there is no such label, and without a host there is no route",
		}},
		{"sick", func() *Container { c := own("quaymaster.host=a.test"); c.Health = "unhealthy"; return c }(), []string{"!: its health check says unhealthy, so it gets no requests"}},
		{"starting", func() *Container { c := own("quaymaster.host=a.test"); c.Health = "starting"; return c }(), nil},
		{"healthy", func() *Container { c := own("quaymaster.host=a.test"); c.Health = "healthy"; return c }(), []string{"web@docker tls a.test [] -> 172.18.0.2:80"}},
		{"of this host", func() *Container {
			c := own("quaymaster.host=a.test")
			c.Networks, c.Shares = nil, true
			return c
		}(), []string{"web@docker tls a.test [] -> 127.0.0.1:80"}},
		{"out of reach", func() *Container { c := own("quaymaster.host=a.test"); c.Networks = c.Networks[1:2]; return c }(), []string{"!quaymaster.port: port 80 is not published, and this host is in none of the container's networks"}},
		{"published for IPv6", func() *Container {
			c := own("quaymaster.host=a.test")
			c.Ports[0].At = netip.MustParseAddrPort("[::]:9")
			return c
		}(), []string{"web@docker tls a.test [] -> [::1]:9"}},
		{"exposed alone", func() *Container {
			c := web("quaymaster.enable=true", "quaymaster.host=a.test")
			c.Ports = c.Ports[:1]
			return c
		}(), []string{"web@docker tls a.test [] -> 172.18.0.2:80"}},
		{"nothing exposed", func() *Container {
			c := web("quaymaster.enable=true", "quaymaster.host=a.test")
			c.Ports = nil
			return c
		}(), []string{"!quaymaster.port: the container exposes no port, so it must be said"}},
		{"too long together", &Container{Name: "web", Engine: "docker", TooLong: true}, []string{"!: its labels for routes are too long together"}},

		{"Traefik", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.services.s.loadbalancer.server.port=8080"), []string{"web:r@docker plain! a.test [] #14 -> 127.0.0.1:32768"}},
		{"ours before Traefik's", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "quaymaster.enable=true", "quaymaster.port=80", "quaymaster.host=b.test"), []string{"web@docker tls b.test [] -> 172.18.0.2:80"}},
		{"the lowest port", theirs("traefik.http.routers.r.rule=Host(`a.test`)"), []string{"web:r@docker plain! a.test [] #14 -> 172.18.0.2:80"}},
		{"TLS", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.tls=true"), []string{"web:r@docker tls! a.test [] #14 -> 172.18.0.2:80"}},
		{"a resolver", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.tls.certResolver=le", "traefik.http.routers.r.entryPoints=websecure"), []string{"web:r@docker tls! a.test [] #14 -> 172.18.0.2:80"}},
		{"both entry points", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.entrypoints=web, websecure"), []string{"web:r@docker tls! a.test [] #14 -> 172.18.0.2:80", "web:r.2@docker plain! a.test [] #14 -> 172.18.0.2:80"}},
		{"two groups", theirs("traefik.http.routers.r.rule=Host(`a.test`) && Path(`/x`) || Host(`b.test`)", "traefik.http.routers.r.priority=5"), []string{"web:r@docker plain! a.test [/x] #5 -> 172.18.0.2:80", "web:r.2@docker plain! b.test [] #5 -> 172.18.0.2:80"}},
		{"a service by name", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.service=two", "traefik.http.services.one.loadbalancer.server.port=80", "traefik.http.services.two.loadbalancer.server.port=8080", "traefik.http.services.two.loadbalancer.server.scheme=http"), []string{"web:r@docker plain! a.test [] #14 -> 127.0.0.1:32768"}},
		{"a network of Traefik", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.docker.network=front"), []string{"web:r@docker plain! a.test [] #14 -> 172.19.0.2:80"}},
		{"no rule", theirs(), []string{"!traefik.http.routers.NAME.rule: there is no such label, and without a rule there is no route"}},
		{"a router without a rule", theirs("traefik.http.routers.r.tls=true"), []string{"!traefik.http.routers.r.rule: the router has no rule"}},
		{"a middleware", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.ok.rule=Host(`b.test`)", "traefik.http.routers.r.middlewares=auth"), []string{"!traefik.http.routers.r.middlewares: this label of Traefik is not known here"}},
		{"a middleware that nobody names", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.middlewares.m.basicauth.users=x"), []string{"!traefik.http.middlewares.m.basicauth.users: this label of Traefik is not known here"}},
		{"TCP", theirs("traefik.tcp.routers.r.rule=HostSNI(`*`)"), []string{"!traefik.tcp.routers.r.rule: this label of Traefik is not known here"}},
		{"HTTPS to the container", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.services.s.loadbalancer.server.scheme=https"), []string{`!traefik.http.services.s.loadbalancer.server.scheme: a target by "https" cannot be had from labels`}},
		{"another entry point", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.entrypoints=metrics"), []string{`!traefik.http.routers.r.entrypoints: the entry point "metrics" is not known here`}},
		{"TLS on the plain entry point", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.entrypoints=web", "traefik.http.routers.r.tls=true"), []string{"!traefik.http.routers.r.entrypoints: web is for clients without TLS, and router r is for those with TLS"}},
		{"a priority", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.priority=high"), []string{`!traefik.http.routers.r.priority: "high" is no priority`}},
		{"a service of somebody else", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.routers.r.service=api@internal"), []string{`!traefik.http.routers.r.service: this container has no service "api@internal"`}},
		{"which service", theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.http.services.one.loadbalancer.server.port=80", "traefik.http.services.two.loadbalancer.server.port=80"), []string{"!traefik.http.routers.r.service: the container has 2 services"}},
		{"a bad rule", theirs("traefik.http.routers.r.rule=HostRegexp(`a`)"), []string{"!traefik.http.routers.r.rule: the matcher HostRegexp is not known here: Host, PathPrefix and Path are"}},
		{"a bad name", theirs("traefik.http.routers.a@b.rule=Host(`a.test`)"), []string{`!traefik.http.routers.a@b.rule: "a@b" is no name for a route`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			routes, refused := Read(c.c, true)
			var got []string
			for i := range routes {
				got = append(got, short(&routes[i]))
			}
			for _, r := range refused {
				got = append(got, "!"+r.Label+": "+r.Message)
				if r.Remedy == "" || r.Container != "container web (docker)" {
					t.Errorf("%+v", r)
				}
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
			if again, _ := Read(c.c, true); !reflect.DeepEqual(again, routes) {
				t.Error("the same labels make other routes the second time")
			}
		})
	}
}

func TestLabelsOfTraefikCountWhereTheyAreAsked(t *testing.T) {
	if routes, refused := Read(theirs("traefik.http.routers.r.rule=Host(`a.test`)", "traefik.x=y"), false); len(routes)+len(refused) > 0 {
		t.Errorf("%v %v", routes, refused)
	}
}

func TestRules(t *testing.T) {
	for text, want := range map[string]string{
		"Host(`a.test`)":                                     "a.test []",
		"Host(`A.test.`, \"b.test\")":                        "a.test,b.test []",
		"Host(`a.test`) || Host(`b.test`)":                   "a.test,b.test []",
		"(Host(`a.test`)||Host(`b.test`))&&PathPrefix(`/x`)": "a.test,b.test [/x/*]",
		"Host(`a.test`) && PathPrefix(`/x/`, `/y`)":          "a.test [/x/* /y/*]",
		"Host(`a.test`) && PathPrefix(`/`)":                  "a.test []",
		"Host(`a.test`) && (Path(`/x`) || PathPrefix(`/y`))": "a.test [/x /y/*]",
		"Host(`a.test`) && Path(`/x`) || Host(`b.test`)":     "a.test [/x]; b.test []",
		"Host(`a.test`) || Host(`a.test`) && Path(`/x`)":     "a.test []",
		"((Host(`a.test`)))":                                 "a.test []",
		"Host(`a.test`) && Host(`a.test`)":                   "a.test []",
		"":                                                   "!the rule ends where a matcher is wanted",
		"Host(`a.test`) &&":                                  "!the rule ends where a matcher is wanted",
		"Host(`a.test`) Host(`b.test`)":                      "!\"Host(`b.test`)\" stands where && or || is wanted",
		"Host(`a.test`) && Host(`b.test`)":                   "!no request has two hosts",
		"Host(`a.test`) && Path(`/x`) && Path(`/y`)":         "!are both demanded of one path",
		"PathPrefix(`/x`)":                                   "!a part of the rule names no host",
		"Host(`a.test`) || Path(`/x`)":                       "!a part of the rule names no host",
		"!Host(`a.test`)":                                    "!! is not known here",
		"Host(`a.test`) && Method(`GET`)":                    "!the matcher Method is not known here",
		"Host(`*.test`)":                                     "!Host(\"*.test\") is no name of a host",
		"Host(`{x:[a-z]+}.test`)":                            "!is no name of a host",
		"Host(`a.test`) && Path(`/{id}`)":                    "!is no plain path",
		"Host(`a.test`) && Path(`x`)":                        "!is no plain path",
		"Host(`a.test`) && Path(`/a/:b`)":                    "!is no plain path",
		"Host(`a.test`) && Path(`/a/*`)":                     "!is no plain path",
		"Host(``)":                                           "!is no name of a host",
		"Host()":                                             "!Host wants a value between backticks",
		"Host(a.test)":                                       "!Host wants a value between backticks",
		"Host":                                               "!Host wants a value in parentheses",
		"Host(`a.test":                                       "!a value of Host has no end",
		"Host(`a.test`":                                      "!a parenthesis of Host is not closed",
		"(Host(`a.test`)":                                    "!a parenthesis is not closed",
		"Host(`a.test`))":                                    "!stands where && or || is wanted",
		strings.Repeat("(", 100) + "Host(`a`)":               "!more than 16 parentheses",
		"Host(`a`" + strings.Repeat(",`a`", 64) + ")":        "!more than 64 values",
		strings.Repeat("Host(`a`) || ", 64) + "Host(`a`)":    "!more than 64 alternatives",
		"(Host(`a`,`b`,`c`,`d`,`e`,`f`,`g`,`h`,`i`))&&Path(`/1`,`/2`,`/3`,`/4`,`/5`,`/6`,`/7`,`/8`)": "!more than 64 alternatives",
		strings.Repeat(" ", maxValue+1): "!more than 4096 bytes",
	} {
		hosts, paths, err := Rule(text)
		var got []string
		for i := range hosts {
			got = append(got, strings.Join(hosts[i], ",")+" "+fmt.Sprint(paths[i]))
		}
		fault, bad := strings.CutPrefix(want, "!")
		switch {
		case bad && (err == nil || !strings.Contains(err.Error(), fault)):
			t.Errorf("%.80s\n  got  %v %v\n  want %s", text, got, err, fault)
		case !bad && (err != nil || strings.Join(got, "; ") != want):
			t.Errorf("%.80s\n  got  %v %v\n  want %s", text, got, err, want)
		}
	}
}

// FuzzRule: whatever the rule, it ends, in bounds, with hosts for every route or with an error.
func FuzzRule(f *testing.F) {
	for _, s := range []string{
		"Host(`a.test`)", "(Host(`a`) || Host(`b`, `c`)) && PathPrefix(`/x`) && Path(`/x`)", "!Host(`a`)", "((((", "Host(`a`) && (Path(`/1`)||Path(`/2`))",
		"Host(\"a\")||", "Host(`a`)\t&&\nPathPrefix(`/`)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hosts, paths, err := Rule(s)
		if err != nil {
			if len(hosts)+len(paths) > 0 || len(err.Error()) > 1000 {
				t.Fatalf("%v %v %d bytes", hosts, paths, len(err.Error()))
			}
			return
		}
		if len(hosts) == 0 || len(hosts) != len(paths) || len(hosts) > maxAlts {
			t.Fatalf("%d sets of hosts, %d of paths", len(hosts), len(paths))
		}
		for i := range hosts {
			if len(hosts[i]) == 0 || len(hosts[i]) > maxAlts || len(paths[i]) > maxAlts {
				t.Fatalf("%v %v", hosts[i], paths[i])
			}
			for _, h := range hosts[i] {
				if h == "" || strings.ContainsAny(h, "*{}:/ ") {
					t.Fatalf("host %q", h)
				}
			}
			for _, p := range paths[i] {
				if !strings.HasPrefix(p, "/") || strings.Contains(strings.TrimSuffix(p, "/*"), "*") {
					t.Fatalf("path %q", p)
				}
			}
		}
	})
}

// FuzzRead: whatever the labels, what they make leads to the container and has a name, a host and a bounded size.
func FuzzRead(f *testing.F) {
	f.Add("quaymaster.host", "a.test", "quaymaster.x.path", "/a")
	f.Add("traefik.http.routers.r.rule", "Host(`a`)", "traefik.http.services.s.loadbalancer.server.port", "80")
	f.Add("traefik.http.routers.r.rule", "Host(`a`)", "traefik.http.routers.r.entrypoints", "web,websecure")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		for _, c := range []*Container{own(k1+"="+v1, k2+"="+v2), theirs(k1+"="+v1, k2+"="+v2)} {
			routes, refused := Read(c, true)
			names := map[string]bool{}
			for i := range routes {
				r := &routes[i]
				if len(r.Hosts) == 0 || names[r.Name] || !strings.HasPrefix(r.Name, "web") || !strings.HasSuffix(r.Name, "@docker") {
					t.Fatalf("%+v", r)
				}
				names[r.Name] = true
				host, _, _ := strings.Cut(r.Target, ":")
				if host != "127.0.0.1" && host != "172.18.0.2" && host != "172.19.0.2" {
					t.Fatalf("a route to %s", r.Target)
				}
			}
			for i := range refused {
				if len(refused[i].String()) > 10_000 {
					t.Fatalf("%d bytes", len(refused[i].String()))
				}
			}
		}
	})
}
