//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/chaos/load"
)

// options are one run.
type options struct {
	duration time.Duration
	seed     uint64
	binary   string
	dir      string        // for configurations, journals and logs
	self     string        // program that becomes a target when its first argument is "target"
	every    time.Duration // the mean pause between two acts
	long     time.Duration // of a long exchange
	halts    bool          // the machine may be halted in a reload, which takes its time on a busy host
	patience time.Duration // how long the machine may take until it is as it must be
	only     string        // names of acts, by commas; "" = all
	race     bool          // binary was built with the race detector: its memory says nothing
	out      io.Writer
}

// chaos is one run.
type chaos struct {
	o       options
	ctx     context.Context // ends with the run
	self    string
	rng     *rand.Rand // of the acts, one after the other
	m       *machine
	garden  *gardener
	world   *load.World
	judge   *load.Judge
	fleet   *load.Fleet
	targets []*target
	log     *os.File     // of the targets
	claim   net.Listener // of our block of ports

	now    *plan // in force; of the goroutine that acts
	start  quiet // before the first client
	quiets []quiet
	count  map[string]int // acts by name
	others sync.WaitGroup // acts that go on beside others

	mu     sync.Mutex // guards what follows
	taken  map[int]*foreign
	coming map[int]bool // ports that the machine has to get back
	failed error
}

// run is a whole run. Its error is one of the chaos itself; what the machine did wrong is in the tally.
func run(ctx context.Context, o options) (*chaos, load.Tally, error) {
	c := &chaos{
		o: o, ctx: ctx, self: o.self, rng: rand.New(rand.NewPCG(o.seed, 1)), count: map[string]int{},
		taken: map[int]*foreign{}, coming: map[int]bool{},
	}
	defer c.end()
	if err := c.begin(); err != nil {
		return c, load.Tally{}, err
	}
	clients, stop := context.WithCancel(context.Background())
	judging, judged := context.WithCancel(context.Background())
	var fleet, judge sync.WaitGroup
	fleet.Go(func() { c.fleet.Run(clients) })
	judge.Go(func() { c.judge.Run(judging) })
	err := c.rage(ctx)
	c.others.Wait()
	if err == nil {
		err = c.checkLeaks()
	}
	stop()
	fleet.Wait()
	judged()
	judge.Wait()
	if err == nil {
		c.stop()
	}
	return c, c.judge.Finish(), errors.Join(err, c.failure())
}

// begin brings targets and machine up, and measures the machine before the first client.
func (c *chaos) begin() (err error) {
	p, claim, err := newPool(c.rng)
	if err != nil {
		return err
	}
	c.claim = claim
	if c.log, err = os.Create(filepath.Join(c.o.dir, "targets.log")); err != nil {
		return err
	}
	if c.targets, err = newTargets(c.o.dir, 6, p.all()[0]+targetsAt, p.all()[0]+blockSize-1); err != nil {
		return err
	}
	for _, t := range c.targets {
		if err := t.start(c.self, c.log); err != nil {
			return err
		}
	}
	c.garden = &gardener{rng: c.rng, bars: c.barred}
	c.now = c.garden.first(&plan{specific: map[int]bool{}, pool: p, targets: c.targets})
	if c.m, err = newMachine(c.o.binary, c.o.dir); err != nil {
		return err
	}
	if err := c.m.write(c.now.yaml(c.m.head())); err != nil {
		return err
	}
	if err := c.m.start(); err != nil {
		return err
	}
	c.world = load.NewWorld(c.now)
	c.judge = &load.Judge{World: c.world, Found: func(v load.Violation) { fmt.Fprintf(c.o.out, "VIOLATION %s\n", v) }}
	for _, t := range c.targets {
		c.judge.Journals = append(c.judge.Journals, t.journal)
	}
	c.fleet = &load.Fleet{
		Source: &guide{c.world}, Report: c.judge.Take, Seed: c.o.seed, Long: c.o.long, Prefix: fmt.Sprintf("n%x-", c.o.seed&0xffff),
	}
	if err := c.checkPorts(); err != nil {
		return err
	}
	c.start, err = c.least()
	return err
}

// rage lets acts happen by weight until the time is over and each has happened at least once.
func (c *chaos) rage(ctx context.Context) error {
	all, err := c.chosen()
	if err != nil {
		return err
	}
	sum := 0
	for _, a := range all {
		sum += a.weight
	}
	order := c.rng.Perm(len(all)) // in which each happens for the first time
	over := time.Now().Add(c.o.duration)
	for len(order) > 0 || time.Now().Before(over) {
		if !pause(ctx, time.Duration(c.rng.Int64N(2*int64(c.o.every)))) {
			return nil
		}
		n := c.rng.IntN(sum)
		i := slices.IndexFunc(all, func(a act) bool { n -= a.weight; return n < 0 })
		if len(order) > 0 && c.rng.IntN(2) == 0 {
			i, order = order[0], append(order[1:], order[0])
		}
		done, err := c.happen(all[i])
		if err != nil {
			return err
		}
		if done {
			order = slices.DeleteFunc(order, func(x int) bool { return x == i })
		}
	}
	return nil
}

// chosen are the acts of this run.
func (c *chaos) chosen() ([]act, error) {
	all := c.acts()
	if c.o.only == "" {
		return all, nil
	}
	var out []act
	for name := range strings.SplitSeq(c.o.only, ",") {
		i := slices.IndexFunc(all, func(a act) bool { return a.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no act %q", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// happen lets one act happen, and reports whether it could.
func (c *chaos) happen(a act) (bool, error) {
	began := time.Now()
	err := a.do(c)
	if c.m.gone(c.m.pid) { // nobody but us ends it, and whoever does starts it again
		c.judge.Violate("the machine has ended by itself", "pid %d, in %q or before; quaymaster.log says why", c.m.pid, a.name)
		return false, errors.Join(errors.New("there is nothing left to test"), err)
	}
	if errors.Is(err, errNothing) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.name, err)
	}
	c.count[a.name]++
	fmt.Fprintf(c.log, "%s %s %v\n", began.Format("15:04:05.000000"), a.name, time.Since(began).Round(time.Microsecond))
	return true, c.failure()
}

// stop asks the machine to end. There is no client left, so it ends at once and well.
func (c *chaos) stop() {
	direct := c.m.pid == c.m.group
	_ = syscall.Kill(c.m.pid, syscall.SIGTERM)
	if err := within(max(c.o.patience, 30*time.Second), "the machine stops", func() error {
		if !c.m.gone(c.m.pid) {
			return errors.New("it is still there")
		}
		return nil
	}); err != nil {
		c.judge.Violate("the machine does not stop", "%v", err)
		return
	}
	if direct {
		if code := <-c.m.ended; code != 0 {
			c.judge.Violate("the machine stopped badly", "exit code %d", code)
		}
	}
	for _, port := range c.now.ports() {
		if !free(port) {
			c.judge.Violate("a port is held after the end", "port %d", port)
		}
	}
}

// end ends every process that the run has started.
func (c *chaos) end() {
	if c.m != nil {
		c.m.killAll()
	}
	for _, t := range c.targets {
		t.kill()
	}
	if c.log != nil {
		_ = c.log.Close()
	}
	if c.claim != nil {
		_ = c.claim.Close()
	}
}

// fail notes an error of the chaos itself; the run ends with it.
func (c *chaos) fail(err error) {
	c.mu.Lock()
	c.failed = errors.Join(c.failed, err)
	c.mu.Unlock()
}

func (c *chaos) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// summary is what a run came to.
func (c *chaos) summary(t load.Tally) string {
	var b strings.Builder
	n := 0
	for _, k := range c.count {
		n += k
	}
	fmt.Fprintf(&b, "seed %d: %d exchanges (%d of them could end in one way only), %d acts, %d violations\n",
		c.o.seed, t.Exchanges, t.Strict, n, t.Bad)
	for _, name := range slices.Sorted(maps.Keys(c.count)) {
		fmt.Fprintf(&b, "  %4d %s\n", c.count[name], name)
	}
	b.WriteString(t.String())
	fmt.Fprintf(&b, "before the first client: %v\n", c.start)
	for _, q := range c.quiets {
		fmt.Fprintf(&b, "  without clients later: %v\n", q)
	}
	return b.String()
}
