package guard

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// running is a guard whose Run is running; stop ends it and waits.
func running(t *testing.T, log *lines) (g *Guard, stop func()) {
	g = New(Options{Log: log.logger(), Limit: many, Registry: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return g, func() { cancel(); done.Wait() }
}

var countRE = regexp.MustCompile(`count=(\d+)`)

// counted adds up the counts of all lines.
func counted(t *testing.T, list []string) (sum int) {
	t.Helper()
	for _, l := range list {
		m := countRE.FindStringSubmatch(l)
		if m == nil {
			t.Fatal("a line without a count:", l)
		}
		n, _ := strconv.Atoi(m[1])
		sum += n
	}
	return sum
}

func TestC14_TenThousandRejectedConnectionsGiveFewLinesThatCarryTheirCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		g, stop := running(t, &log)
		step, _ := g.Prepare(t.Context(), &plan.Plan{Settings: plan.Settings{MaxConnections: 1}})
		step.Commit()
		settings := len(log.list())
		g.Accept()
		for n := range 10_000 { // over 25 s, of three reasons
			switch n % 3 {
			case 0:
				g.Accept()
			case 1:
				g.Reject(BadRequest, netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), ":80", "two lengths")
			case 2:
				g.Reject(UnknownProtocol, netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), ":80", fmt.Sprintf("%032x", n))
			}
			time.Sleep(2500 * time.Microsecond)
		}
		stop()
		list := log.list()[settings:]
		if got := counted(t, list); got != 10_000 {
			t.Errorf("the lines carry %d refusals", got)
		}
		of := map[string]int{}
		for _, l := range list {
			_, rest, _ := strings.Cut(l, "reason=")
			reason, _, _ := strings.Cut(rest, " ")
			of[reason]++
		}
		// 25 s: one line at once, two or three summaries, one at the end; and ten sources in each ten seconds.
		if of["max_connections"] > 5 || of["bad_request"] > 5 || of["unknown_protocol"] > 35 {
			t.Errorf("%v", of)
		}
	})
}

func TestTheFirstRefusalOfAReasonIsToldAtOnce(t *testing.T) {
	var log lines
	g := New(Options{Log: log.logger(), Limit: many})
	g.Reject(Denied, addr("::ffff:10.0.0.1"), ":443", "route admin")
	g.Reject(Denied, addr("10.0.0.2"), ":443", "")
	g.Reject(Loop, netip.Addr{}, "", "")
	want := []string{
		`level=WARN msg="connections rejected" reason=denied count=1 client=10.0.0.1 port=:443 detail="route admin"`,
		`level=WARN msg="connections rejected" reason=loop count=1`,
	}
	if got := log.list(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}

func TestTheOthersAreSummedUpEveryTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		g, stop := running(t, &log)
		for range 5 {
			g.Reject(Denied, addr("10.0.0.1"), ":443", "")
		}
		time.Sleep(summaryEvery + time.Millisecond)
		synctest.Wait()
		list := log.list()
		if len(list) != 2 || !strings.Contains(list[1], "count=4 client=10.0.0.1") {
			t.Errorf("%q", list)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(log.list()) != 2 {
			t.Error("silence was logged")
		}
		time.Sleep(summaryEvery / 2)                   // off the beat of the summaries
		g.Reject(Denied, addr("10.0.0.1"), ":443", "") // at once again
		g.Reject(Denied, addr("10.0.0.3"), ":443", "") // at the end
		time.Sleep(summaryEvery - time.Second)
		synctest.Wait()
		if n := len(log.list()); n != 3 {
			t.Errorf("%d lines before ten seconds are over", n)
		}
		stop()
		list = log.list()
		if len(list) != 4 || !strings.Contains(list[3], "count=1 client=10.0.0.3") {
			t.Errorf("%q", list)
		}
	})
}

func TestTheFirstBytesOfASourceAreShownOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		g := New(Options{Log: log.logger(), Limit: many})
		shown := func(detail string) (n int) {
			for _, l := range log.list() {
				n += strings.Count(l, "detail="+detail)
			}
			return n
		}
		for range 100 {
			g.Reject(UnknownProtocol, addr("10.0.0.1"), ":80", "aa")
			g.Reject(UnknownProtocol, addr("10.0.0.2"), ":80", "bb")
			time.Sleep(50 * time.Millisecond)
		}
		if shown("aa") != 1 || shown("bb") != 1 {
			t.Errorf("%q", log.list())
		}
		time.Sleep(time.Minute)
		g.Reject(UnknownProtocol, addr("10.0.0.2"), ":80", "bb")
		g.Reject(UnknownProtocol, addr("10.0.0.1"), ":80", "aa")
		if shown("aa") != 2 || shown("bb") != 2 {
			t.Errorf("a minute later: %q", log.list())
		}
		if got := counted(t, log.list()); got != 202 {
			t.Errorf("the lines carry %d refusals", got)
		}
	})
}

func TestWhatAStrangerSaysIsBoundedInTheLog(t *testing.T) {
	var log lines
	g := New(Options{Log: log.logger(), Limit: many})
	g.Reject(BadRequest, addr("10.0.0.1"), ":80", strings.Repeat("x", 100_000))
	if got := log.list(); len(got) != 1 || len(got[0]) > maxDetail+200 {
		t.Errorf("a line of %d bytes", len(got[0]))
	}
}
