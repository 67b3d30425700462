package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/ports/evict"
	who "github.com/quaymaster/quaymaster/internal/ports/holder"
)

// freeRounds bounds how often a process that got the socket in the meantime, as a child does, is ended too.
const freeRounds = 3

func (s *shell) portsFreeVerb() *cobra.Command {
	f := &freeing{shell: s}
	c := verb(
		"free PORT", "End the process that listens on a port, after asking; exit 0 only when the port is free. Needs no daemon",
		"quaymaster ports free 8080", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			port, err := portNumber(args[0])
			if err != nil {
				return err
			}
			f.port = port
			return f.report(f.do(ctx))
		},
	)
	c.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&f.force, "force", false, "also another user's process, and a systemd service, which may be started again")
	return c
}

// A freeing is one `ports free` under way.
type freeing struct {
	*shell
	port       uint16
	yes, force bool
	was        []who.Holder
	ended      []freeEnded
}

// freed is what `ports free --json` prints.
type freed struct {
	Port    int             `json:"port"`
	Free    bool            `json:"free"`
	Holders []api.Listening `json:"holders"` // who had it; never null
	Ended   []freeEnded     `json:"ended"`   // never null
	Error   string          `json:"error"`
}

type freeEnded struct {
	PID    int    `json:"pid"`
	Signal string `json:"signal"` // the last one it was sent: TERM or KILL
}

// say tells a person what happens, unless a program listens.
func (f *freeing) say(text string, args ...any) {
	if !f.json {
		fmt.Fprintf(f.out, text+"\n", args...)
	}
}

// report prints the result. nil says that a bind has proven the port to be free.
func (f *freeing) report(err error) error {
	var c *coded
	if errors.As(err, &c) {
		return err
	}
	if !f.json {
		return err
	}
	r := freed{Port: int(f.port), Free: err == nil, Holders: []api.Listening{}, Ended: f.ended}
	for i := range f.was {
		r.Holders = append(r.Holders, listening(&f.was[i]))
	}
	if r.Ended == nil {
		r.Ended = []freeEnded{}
	}
	if err != nil {
		r.Error = err.Error()
	}
	if bad := f.printJSON(r); bad != nil || err == nil {
		return bad
	}
	return &coded{exitFailed, nil}
}

// listening is a holder as the API shows it.
func listening(h *who.Holder) api.Listening {
	l := api.Listening{Proto: "tcp", Port: int(h.Addr.Port()), Holder: &api.Holder{
		PID: h.Pid, Started: h.Started, Command: h.Command, Exe: h.Exe, User: h.User, Unit: h.Unit, Container: h.Container,
	}}
	if h.Addr.IsValid() {
		l.Address = h.Addr.Addr().String()
	}
	return l
}

func (f *freeing) look() ([]who.Holder, error) {
	return who.Everyone(func(a netip.AddrPort) bool { return a.Port() == f.port })
}

// probe binds the port on every address.
func (f *freeing) probe() error { return evict.Probe(plan.Addr{Port: f.port}) }

// do frees the port, or says why not.
func (f *freeing) do(ctx context.Context) error {
	err := f.probe()
	if err == nil {
		f.say("port %d is free: nobody listens on it", f.port)
		return nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return f.cannotProbe(err)
	}
	if f.was, err = f.look(); err != nil {
		return fmt.Errorf("cannot look up who listens on port %d: %w", f.port, err)
	}
	if len(f.was) == 0 {
		return fmt.Errorf("port %d is in use, and nobody listens on it: it is bound without listening, or it is the near end "+
			"of somebody's connection, and those are never ended; see: ss -tanp sport = :%d", f.port, f.port)
	}
	for i, h := range f.was {
		if i == 0 || !slices.ContainsFunc(f.was[:i], func(o who.Holder) bool { return o.Pid == h.Pid && o.Addr == h.Addr }) {
			f.say("%s is held by %s", h.Addr, h.String())
		}
	}
	if err := f.ownPort(ctx); err != nil {
		return err
	}
	rules := evict.Rules{Force: f.force}
	if err := rules.All(f.was); err != nil {
		return f.refused(err)
	}
	if err := f.confirm(ctx); err != nil {
		return err
	}
	return f.end(ctx, rules)
}

// cannotProbe says why a bind cannot tell whether the port is free; without that, nobody is ended.
func (f *freeing) cannotProbe(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("cannot find out whether port %d is free: this user may not bind it; run as root", f.port)
	}
	return fmt.Errorf("cannot find out whether port %d is free: %w", f.port, err)
}

// refused words the reasons why holders are left alone, and what --force would change.
func (f *freeing) refused(err error) error {
	if !f.force && (evict.Rules{Force: true}).All(f.was) == nil {
		return fmt.Errorf("%w; or add --force", err)
	}
	return err
}

// ownPort refuses to free what a daemon of ours holds: that is for its configuration to say.
func (f *freeing) ownPort(ctx context.Context) error {
	if err := f.heldByDaemon(ctx); err != nil {
		return err
	}
	exe, err := os.Executable()
	for i := range f.was {
		h := &f.was[i]
		words := strings.Fields(h.Command)
		if h.Ours() || err == nil && h.Exe == exe && len(words) > 1 && slices.Contains(words[1:], "run") {
			return fmt.Errorf("port %d is held by a quaymaster (pid %d); take the port out of its configuration and reload it, or stop it with \"kill %d\"",
				f.port, h.Pid, h.Pid)
		}
	}
	return nil
}

// heldByDaemon asks the daemon, if one answers, what it holds the port for.
func (f *freeing) heldByDaemon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c := f.client()
	defer c.Close()
	var st api.Status
	if c.Get(ctx, "/v1/status", &st) != nil || !slices.ContainsFunc(f.was, func(h who.Holder) bool { return h.Pid == st.PID }) {
		return nil
	}
	var list []api.Port
	if err := c.Get(ctx, "/v1/ports", &list); err != nil {
		return cannot("ask the daemon, which holds the port, what for", err)
	}
	var routes, other []string
	for _, p := range list {
		switch {
		case p.Port != int(f.port) || p.Proto != "tcp":
		case len(p.Routes) > 0:
			routes = append(routes, p.Routes...)
		default:
			other = append(other, p.Source)
		}
	}
	slices.Sort(routes)
	routes, other = slices.Compact(routes), slices.Compact(other)
	switch {
	case len(routes) > 0:
		return fmt.Errorf("port %d is held by quaymaster itself (pid %d) for %s; take the port out of there and run \"quaymaster reload\"",
			f.port, st.PID, strings.Join(routes, ", "))
	case len(other) > 0:
		return fmt.Errorf("port %d is held by quaymaster itself (pid %d) for %s; change %s.address in its configuration",
			f.port, st.PID, strings.Join(other, " and "), other[0])
	}
	return fmt.Errorf("port %d is held by quaymaster itself (pid %d), which lists no use of it; see \"quaymaster ports\"", f.port, st.PID)
}

// pids counts the processes among holders.
func pids(holders []who.Holder) int {
	var seen []int
	for i := range holders {
		if !slices.Contains(seen, holders[i].Pid) {
			seen = append(seen, holders[i].Pid)
		}
	}
	return len(seen)
}

// confirm asks whoever sits at the terminal.
func (f *freeing) confirm(ctx context.Context) error {
	if f.yes {
		return nil
	}
	if _, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err != nil {
		return &coded{exitUsage, fmt.Errorf("cannot ask whether %s may be ended: this is not a terminal; run it again with --yes", f.was[0].Brief())}
	}
	it := "it"
	if n := pids(f.was); n > 1 {
		it = fmt.Sprintf("all %d processes", n)
	}
	fmt.Fprintf(f.err, "end %s? [y/N] ", it)
	answer := make(chan string, 1)
	go func() { // ends with the process, if not with a line
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(f.err)
	}
	return fmt.Errorf("nothing was ended; port %d is still held", f.port)
}

// end ends the holders, and whoever shares the socket with them and came to light later.
func (f *freeing) end(ctx context.Context, rules evict.Rules) error {
	holders := f.was
	for range freeRounds {
		if err := f.round(ctx, rules, holders); err != nil {
			return err
		}
		err := f.probe()
		if err == nil {
			f.say("port %d is free", f.port)
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return f.cannotProbe(err)
		}
		if holders, err = f.look(); err != nil {
			return fmt.Errorf("cannot look up who listens on port %d: %w", f.port, err)
		}
		if len(holders) == 0 {
			return fmt.Errorf("port %d is still in use, though nobody listens on it any more; see: ss -tanp sport = :%d", f.port, f.port)
		}
		for _, h := range holders {
			if !slices.ContainsFunc(f.was, func(o who.Holder) bool { return o.Inode == h.Inode }) {
				return fmt.Errorf("port %d is held again, by %s: something starts it; find out what and stop that", f.port, h.String())
			}
		}
		f.was = append(f.was, holders...)
	}
	return fmt.Errorf("port %d is still held by %s after %d rounds: something starts it; find out what and stop that", f.port, holders[0].String(), freeRounds)
}

// round sends TERM, waits, sends KILL, waits.
func (f *freeing) round(ctx context.Context, rules evict.Rules, holders []who.Holder) error {
	e, err := evict.Begin(rules, holders, f.look, time.Time{}, evict.Grace)
	if err != nil {
		return err
	}
	defer e.Close()
	asked := e.Asked()
	for i := range asked {
		f.say("asked %s to end (TERM)", asked[i].Brief())
	}
	phase := e.Wait(ctx, func() bool { return f.probe() == nil }, func() {
		for _, h := range e.Killed() {
			f.say("%s has not ended in %.0f s: killed (KILL)", h.Brief(), evict.Grace.Seconds())
		}
	})
	killed, left := e.Killed(), e.Left()
	for _, h := range asked {
		signal := "TERM"
		if slices.ContainsFunc(killed, func(k who.Holder) bool { return k.Pid == h.Pid }) {
			signal = "KILL"
		}
		f.ended = append(f.ended, freeEnded{h.Pid, signal})
	}
	switch {
	case phase == evict.Stuck && len(left) > 0:
		return fmt.Errorf("%s has not ended, not even after KILL: it hangs in the kernel; port %d is still held", left[0].Brief(), f.port)
	case ctx.Err() != nil && phase != evict.Gone:
		return fmt.Errorf("stopped waiting for %s, which was asked to end; port %d may become free yet", left[0].Brief(), f.port)
	}
	return nil
}
