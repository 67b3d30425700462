package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports"
	"github.com/quaymaster/quaymaster/internal/ports/holder"
)

// crowded is the share of app_ports, in percent, that may be taken before it is worth a word.
const crowded = 90

// A wish is a port that the configuration wants.
type wish struct {
	addr     plan.Addr
	object   string
	fallback []plan.Addr
}

func (x *examination) ports() {
	if x.Plan == nil {
		x.add(Warn, "ports", "quaymaster check", "no configuration could be read, so no port was looked at")
		return
	}
	if x.EngineErr != nil {
		x.add(Warn, "container engine", "start it, or set engine.kind in the configuration to the one that is used", "it does not say which ports containers publish: %v", x.EngineErr)
	}
	var held, free []string
	for _, w := range x.wishes() {
		switch {
		case w.addr.Name != "":
			x.ok(w.object, "systemd hands it over at start")
		case x.Running != nil && x.Running.Held[w.addr.String()]:
			held = append(held, w.object)
		case x.Running != nil && w.addr.Network == plan.TCP && x.ofDaemon(w.addr):
			held = append(held, w.object)
		default:
			if x.port(w) {
				free = append(free, w.object)
			}
		}
	}
	if len(held) > 0 {
		x.ok(strings.Join(some(held, 8), " "), "held by the running quaymaster (pid %d)", x.Running.PID)
	}
	if len(free) > 0 {
		x.ok(strings.Join(some(free, 8), " "), "free")
	}
	x.leases()
}

// wishes are the plan's ports, and those of admin and metrics.
func (x *examination) wishes() []wish {
	var out []wish
	for _, p := range x.Plan.Ports {
		out = append(out, wish{addr: p.Addr, object: p.Addr.String(), fallback: p.Fallback})
	}
	set := &x.Plan.Settings
	own := []struct{ name, text string }{{"admin", set.Admin.Address}}
	if set.Metrics.Enabled {
		own = append(own, struct{ name, text string }{"metrics", set.Metrics.Address})
	}
	for _, o := range own {
		text := strings.Replace(o.text, "localhost:", "127.0.0.1:", 1)
		if port, ok := strings.CutPrefix(text, ":"); ok {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				out = append(out, wish{addr: plan.Addr{Port: uint16(n)}, object: o.name + " " + o.text})
			}
		} else if at, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, wish{addr: plan.TCPAddr(at.Addr(), at.Port()), object: o.name + " " + o.text})
		}
	}
	return out
}

// ofDaemon reports whether the running daemon listens on a, as its admin and metrics addresses do.
func (x *examination) ofDaemon(a plan.Addr) bool {
	list, err := ports.Who("tcp", a.Port)
	if err != nil {
		return false
	}
	for _, h := range list {
		if h.Pid == x.Running.PID && h.Addr.IsValid() && plan.TCPAddr(h.Addr.Addr(), h.Addr.Port()).Overlaps(a) {
			return true
		}
	}
	return false
}

// port looks at one that no daemon of ours holds; true when it is free and that is all there is to say.
func (x *examination) port(w wish) bool {
	if by := x.Published[w.addr.Port]; by != "" && w.addr.Network == plan.TCP {
		x.add(Fail, w.object, "stop that container, publish another port of it, or choose another port here",
			"published by %s: its connections are led there before a socket of ours could see them", by)
		return false
	}
	if x.barred(w) {
		return false
	}
	e := x.Probe(w.addr)
	if e == nil {
		return true
	}
	for _, f := range w.fallback {
		if x.Probe(f) == nil {
			x.add(Warn, w.object, e.Remedy(), "%s; %s would serve in its place", e.Cause(), f)
			return false
		}
	}
	x.add(Fail, w.object, e.Remedy(), "%s", e.Cause())
	return false
}

// barred reports, as a finding, a port below the privileged bound that the daemon's user has no right to. What this
// process may do itself says nothing about that where the users differ.
func (x *examination) barred(w wish) bool {
	n, ok := x.host.numbers("/proc/sys/net/ipv4/ip_unprivileged_port_start", 1)
	if !ok || x.user.self || w.addr.Network != plan.TCP || int64(w.addr.Port) >= n[0] || w.addr.Port == 0 || x.user.mayBind {
		return false
	}
	remedy := fmt.Sprintf("sysctl -w net.ipv4.ip_unprivileged_port_start=%d", w.addr.Port)
	if x.unit != nil {
		remedy = fmt.Sprintf("systemctl edit %s, write AmbientCapabilities=CAP_NET_BIND_SERVICE below [Service], and restart it; or: %s", x.unit.name, remedy)
	}
	x.add(Fail, w.object, remedy, "%s may not bind ports below %d (net.ipv4.ip_unprivileged_port_start) without CAP_NET_BIND_SERVICE", x.user, n[0])
	return true
}

// leases counts what is left of app_ports, by the table of listening sockets alone.
func (x *examination) leases() {
	r := x.Plan.Settings.AppPorts
	if r.Hi == 0 {
		return
	}
	busy := map[uint16]bool{}
	list, err := holder.Find(func(a netip.AddrPort) bool { return r.Has(a.Port()) }, nil)
	for _, h := range list {
		if x.Running == nil || h.Pid != x.Running.PID {
			busy[h.Addr.Port()] = true
		}
	}
	for p := range x.Published {
		if r.Has(p) {
			busy[p] = true
		}
	}
	all := int(r.Hi) - int(r.Lo) + 1
	object, remedy := "app_ports "+r.String(), "write a wider range, or stop what listens there (ss -ltnp)"
	switch {
	case err != nil:
		x.add(Warn, object, "sudo lsof -nP -iTCP -sTCP:LISTEN", "who listens there cannot be looked up: %v", err)
	case len(busy) == all:
		x.add(Fail, object, remedy, "none of %d ports is free", all)
	case len(busy)*100 >= all*crowded:
		x.add(Warn, object, remedy, "%d of %d ports are free", all-len(busy), all)
	default:
		x.ok(object, "%d of %d ports are free", all-len(busy), all)
	}
}

// some are at most n words, and how many more there are.
func some(list []string, n int) []string {
	if len(list) <= n {
		return list
	}
	return append(list[:n:n], fmt.Sprintf("and %d more", len(list)-n))
}

// whoHas is the process that has a lock, in a few words.
func whoHas(pid int) string {
	h, ok := holder.Process(pid)
	if !ok {
		return "pid " + strconv.Itoa(pid)
	}
	if h.Pid == os.Getpid() {
		return "this process"
	}
	return h.String()
}
