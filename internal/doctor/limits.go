package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/guard"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// The bounds that are looked for.
const (
	enoughQueue = 1024 // connections that wait to be accepted
	fewSlots    = 100  // connections at once with which nobody is well served
	nearlyFull  = 80   // percent
	full        = 95   // percent
)

func (x *examination) limits() {
	x.openFiles()
	x.hostFiles()
	x.listenQueue()
	x.ephemeral()
	x.timeWait()
	x.conntrack()
}

// openFiles holds the limit of open files against max_connections.
func (x *examination) openFiles() {
	soft, hard, whose, ok := x.fileLimit()
	if !ok {
		x.add(Warn, "open files", "ulimit -n shows it", "the limit of open files cannot be read")
		return
	}
	wanted, listeners := x.settings().MaxConnections, 0
	if x.Plan != nil {
		listeners = len(x.Plan.Ports)
	}
	if x.Running == nil {
		soft = hard // a program in Go raises the one to the other when it starts
	}
	held, enough := guard.Slots(wanted, soft, listeners)
	sum := fmt.Sprintf("%s %d; max_connections %d needs %d (2 each, and %d of our own)", whose, soft, wanted, enough, enough-2*uint64(wanted))
	if held >= wanted {
		x.ok("open files", "%s", sum)
		return
	}
	remedy := fmt.Sprintf("ulimit -n %d in the shell that starts it, or lower max_connections to %d", enough, held)
	switch {
	case x.unit != nil:
		remedy = fmt.Sprintf("systemctl edit %s, write LimitNOFILE=%d below [Service], and restart it", x.unit.name, enough)
	case enough > hard:
		remedy = fmt.Sprintf("write \"* - nofile %d\" in /etc/security/limits.conf and log in again, or lower max_connections to %d", enough, held)
	}
	if most, ok := x.host.numbers("/proc/sys/fs/nr_open", 1); ok && enough > uint64(max(0, most[0])) {
		remedy = fmt.Sprintf("sysctl -w fs.nr_open=%d; then %s", enough, remedy)
	}
	level := Warn
	if held < fewSlots {
		level = Fail
	}
	x.add(level, "open files", remedy, "%s: only %d connections at once are possible", sum, held)
}

// fileLimit is the limit of the running daemon, or of this shell.
func (x *examination) fileLimit() (soft, hard uint64, whose string, ok bool) {
	if x.Running != nil {
		text, _ := x.host.text("/proc/" + strconv.Itoa(x.Running.PID) + "/limits")
		_, rest, found := strings.Cut(text, "Max open files")
		if w := strings.Fields(rest); found && len(w) > 1 {
			return limit(w[0]), limit(w[1]), fmt.Sprintf("pid %d may have", x.Running.PID), true
		}
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, 0, "", false
	}
	return uint64(max(0, l.Cur)), uint64(max(0, l.Max)), "this shell allows", true //nolint:unconvert // differs between systems
}

func limit(text string) uint64 {
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n
	}
	return 1 << 62 // unlimited
}

// hostFiles looks at the table of open files of the whole host.
func (x *examination) hostFiles() {
	n, ok := x.host.numbers("/proc/sys/fs/file-nr", 3)
	if !ok {
		return
	}
	x.filled("open files of the host", n[0], n[2], fmt.Sprintf("find who has them (lsof | awk '{print $1}' | sort | uniq -c | sort -n), or: sysctl -w fs.file-max=%d", double(n[2])))
}

// conntrack looks at the table of a stateful firewall, which drops new connections without a word when it is full.
func (x *examination) conntrack() {
	count, ok := x.host.numbers("/proc/sys/net/netfilter/nf_conntrack_count", 1)
	most, second := x.host.numbers("/proc/sys/net/netfilter/nf_conntrack_max", 1)
	if !ok || !second {
		return // no such firewall
	}
	x.filled("nf_conntrack", count[0], most[0], fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", double(most[0])))
}

func double(n int64) int64 { return min(n, 1<<61) * 2 }

func (x *examination) filled(object string, n, most int64, remedy string) {
	percent := int64(0)
	if most > 0 {
		percent = int64(float64(n) / float64(most) * 100)
	}
	switch {
	case percent >= full:
		x.add(Fail, object, remedy, "%d of %d: %d %% full; new connections fail", n, most, percent)
	case percent >= nearlyFull:
		x.add(Warn, object, remedy, "%d of %d: %d %% full", n, most, percent)
	default:
		x.ok(object, "%d of %d", n, most)
	}
}

func (x *examination) listenQueue() {
	n, ok := x.host.numbers("/proc/sys/net/core/somaxconn", 1)
	switch {
	case !ok:
	case n[0] < enoughQueue:
		x.add(
			Warn, "listen queue", "sysctl -w net.core.somaxconn=4096; to keep it: echo net.core.somaxconn=4096 > /etc/sysctl.d/60-quaymaster.conf; then restart quaymaster",
			"net.core.somaxconn is %d: a burst of more connections than that waits a second for its first answer", n[0],
		)
	default:
		x.ok("listen queue", "net.core.somaxconn is %d", n[0])
	}
}

// ephemeral holds the range from which outgoing connections take their ports against those that are to be listened on.
func (x *examination) ephemeral() {
	const key = "net.ipv4.ip_local_port_range"
	n, ok := x.host.numbers("/proc/sys/net/ipv4/ip_local_port_range", 2)
	if !ok {
		return
	}
	lo, hi := n[0], n[1]
	reserved := x.reserved()
	within := func(p uint16) bool { return int64(p) >= lo && int64(p) <= hi && !reserved(p) }
	clean := true
	if x.Plan != nil {
		var hit []uint16
		for _, p := range x.Plan.Ports {
			if p.Addr.Network == plan.TCP && p.Addr.Name == "" && p.Addr.Port != 0 && within(p.Addr.Port) {
				hit = append(hit, p.Addr.Port)
			}
		}
		if len(hit) > 0 {
			clean = false
			x.add(Warn, "ephemeral ports", x.reserve(spans(hit)),
				"outgoing connections take ports %d-%d (%s): while quaymaster is down one may take %s", lo, hi, key, spans(hit))
		}
		if r := x.Plan.Settings.AppPorts; r.Hi > 0 && (within(r.Lo) || within(r.Hi) || int64(r.Lo) < lo && int64(r.Hi) > hi) {
			clean = false
			x.add(Warn, "app_ports", fmt.Sprintf("write a range below %d, or %s", lo, x.reserve(r.String())),
				"%s and the ports of outgoing connections, %d-%d (%s), overlap: a connection may take what an app is to have", r, lo, hi, key)
		}
	}
	if free := hi - lo + 1; free < int64(x.settings().MaxConnections) {
		x.add(Warn, "outgoing ports", `sysctl -w net.ipv4.ip_local_port_range="16384 60999", or spread the connections over more targets`,
			"%d ports for connections to one target (%s) are fewer than max_connections %d", free, key, x.settings().MaxConnections)
	} else if clean {
		x.ok("ephemeral ports", "%d-%d; no port of the configuration is among them", lo, hi)
	}
}

// reserve is the command that keeps outgoing connections off some ports, beside those that are reserved already.
func (x *examination) reserve(list string) string {
	if have, _ := x.host.text("/proc/sys/net/ipv4/ip_local_reserved_ports"); have != "" {
		list = have + "," + list
	}
	return "sysctl -w net.ipv4.ip_local_reserved_ports=" + list
}

// reserved tells which ports outgoing connections leave alone.
func (x *examination) reserved() func(uint16) bool {
	text, _ := x.host.text("/proc/sys/net/ipv4/ip_local_reserved_ports")
	type span struct{ lo, hi uint64 }
	var spans []span
	for _, w := range strings.Split(text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(w), "-")
		lo, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			continue
		}
		hi := lo
		if ranged {
			hi, _ = strconv.ParseUint(last, 10, 16)
		}
		spans = append(spans, span{lo, hi})
	}
	return func(p uint16) bool {
		for _, s := range spans {
			if uint64(p) >= s.lo && uint64(p) <= s.hi {
				return true
			}
		}
		return false
	}
}

func (x *examination) timeWait() {
	if n, ok := x.host.numbers("/proc/sys/net/ipv4/tcp_tw_reuse", 1); ok {
		x.ok("TIME_WAIT", "never in the way of a bind (SO_REUSEADDR is set); net.ipv4.tcp_tw_reuse is %d and needs no change", n[0])
	}
}

// spans writes ports as a list of numbers and ranges: 80,8000-8010.
func spans(list []uint16) string {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	var out []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		out = append(out, plan.PortRange{Lo: list[i], Hi: list[j]}.String())
		i = j + 1
	}
	return strings.Join(out, ",")
}
