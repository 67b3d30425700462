package pools

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// A watch is the one goroutine that checks a member.
type watch struct {
	set  *plan.Health
	stop context.CancelFunc
}

// watch starts the checks that p wants and does not have. ps.mu is held; without Run there are none. The first checks
// of n pools are spread over n milliseconds, a second at most.
func (ps *Pools) watch(p *Pool, n int) {
	if ps.run == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	set := p.want.Health
	for _, m := range p.members {
		if m.check != nil {
			if m.check.set == set || set != nil && *m.check.set == *set {
				continue
			}
			m.check.stop()
			m.check = nil
		}
		if set == nil || m.target.PreservePort {
			continue // the port of a preserved one is known per client only
		}
		ctx, stop := context.WithCancel(ps.run)
		w := &watch{set: set, stop: stop}
		m.check = w
		first := rand.N(min(time.Second, time.Duration(n)*time.Millisecond))
		ps.checks.Go(func() { p.checkOn(ctx, m, w, first) })
	}
}

func (p *Pool) unwatch() {
	for _, m := range p.current() {
		m.stopWatch(func() bool { return true })
	}
}

// stopWatch ends the checks of m if the func, called with mu held, says so.
func (m *Member) stopWatch(only func() bool) {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	if m.check != nil && only() {
		m.check.stop()
		m.check = nil
	}
}

// checkOn checks m until ctx is done.
func (p *Pool) checkOn(ctx context.Context, m *Member, w *watch, first time.Duration) {
	t := time.NewTimer(first)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		reason := p.check(ctx, m, w.set)
		if ctx.Err() != nil {
			return
		}
		p.judge(m, w, reason)
		t.Reset(w.set.Interval*9/10 + rand.N(w.set.Interval/5+1))
	}
}

// check asks m once whether it is well: "" or why not.
func (p *Pool) check(ctx context.Context, m *Member, set *plan.Health) string {
	ctx, cancel := context.WithTimeout(ctx, set.Timeout)
	defer cancel()
	nc, err := dialTarget(ctx, m, connKey{})
	if err != nil {
		return p.dialError(m, connKey{}, err, false).short()
	}
	var out []byte
	if set.SendProxy != 0 {
		out = appendProxy(out, set.SendProxy, netip.AddrPort{}, netip.AddrPort{})
	}
	if m.target.TLS && set.Path != "" {
		if nc, err = p.sealOrClose(ctx, m, nc, out); err != nil {
			return p.dialError(m, connKey{}, err, false).short()
		}
		out = nil
	}
	defer func() { _ = nc.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
	defer stop()
	if set.Path != "" {
		host := set.Host
		if host == "" {
			host = m.hostField()
		}
		out = append(out, "GET "+set.Path+" HTTP/1.1\r\nHost: "+host+
			"\r\nUser-Agent: quaymaster-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"...)
	}
	if len(out) > 0 {
		if _, err := nc.Write(out); err != nil {
			return checkWords(err)
		}
	}
	if set.Path == "" {
		return ""
	}
	return readCheck(nc, set)
}

func checkWords(err error) string {
	e := Error{Kind: recvKind(err)}
	if e.Kind == "tls" {
		e.Err = alertWords(err)
	}
	return e.Error()
}

func (m *Member) hostField() string {
	if m.target.Network == plan.Unix {
		return "localhost"
	}
	_, address := m.address(connKey{})
	return address
}

// readCheck reads the answer to a check: "" when its status is as wanted.
func readCheck(nc net.Conn, set *plan.Health) string {
	buf := wire.GetBuffer()
	defer buf.Put()
	var h wire.Head
	for from := 0; ; {
		n, next, err := wire.ParseResponse(buf.Bytes(), from, &h, maxFields)
		if err != nil {
			return kindWords["bad_answer"] + ": " + err.Error()
		}
		if n > 0 {
			buf.Discard(n)
			if h.Status >= 200 {
				break
			}
			from = 0
			continue
		}
		from = next
		if _, err := buf.Fill(nc, checkHead); err != nil {
			return checkWords(err)
		}
	}
	if set.StatusMin <= h.Status && h.Status <= set.StatusMax {
		return ""
	}
	var body wire.BodyReader
	f, length := wire.FramingOf([]byte("GET"), &h)
	body.Reset(nc, buf, f, length, nil)
	first := make([]byte, checkBody)
	n, _ := io.ReadFull(&body, first) // as much as there is
	reason := "status " + strconv.Itoa(h.Status)
	if n > 0 {
		reason += ": " + strings.Map(printable, string(first[:n]))
	}
	return reason
}

const (
	checkHead = 16 << 10 // of an answer to a check
	checkBody = 64       // of its body, in the reason
)

func printable(r rune) rune {
	if r == utf8.RuneError || !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

// judge takes the result of a check into account: reason is empty when m was well.
func (p *Pool) judge(m *Member, w *watch, reason string) {
	p.mu.Lock()
	if m.check != w { // it was stopped meanwhile
		p.mu.Unlock()
		return
	}
	if reason != "" {
		m.reason, m.failed = reason, time.Now()
	}
	turned := m.judge(reason == "", w.set)
	if turned {
		m.since = time.Now()
		m.risen = p.ps.now()
		m.outUntil = 0
		p.balance.dirty = true
		p.pump(m.risen)
	}
	down := m.down
	p.mu.Unlock()
	switch {
	case turned && down:
		p.ps.log.Warn("target is down", "upstream", p.name, "target", m.target.Text, "reason", reason)
	case turned:
		p.ps.log.Info("target is up", "upstream", p.name, "target", m.target.Text)
	}
}

// judge reports whether the result turns m from up to down or back.
func (m *Member) judge(well bool, set *plan.Health) bool {
	if well != m.down {
		m.streak = 0
		return false
	}
	m.streak++
	need := set.Fall
	if m.down {
		need = set.Rise
	}
	if m.streak < need {
		return false
	}
	m.down, m.streak = !m.down, 0
	return true
}
