//go:build linux

// Command chaos lets everything happen to a real quaymaster at once: reloads, edits, upgrades, foreign listeners that
// come and go, targets and quaymaster itself killed, while clients of all protocols, who never try anything twice, go
// on.
//
// It promises that whatever a client saw, a target received, a port did or a process kept is held against what the
// configuration said at that moment (docs/design/chaos.md), and that a run can be repeated from its seed. It binds
// loopback and its own ports alone, kills only what it has started, and ends by itself.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "target" {
		if err := serveTarget(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "target:", err)
			os.Exit(1)
		}
		return
	}
	o := options{out: os.Stdout}
	keep := false
	flag.DurationVar(&o.duration, "duration", 5*time.Minute, "how long acts go on")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64()>>32, "seed of all choices, to repeat a run")
	flag.StringVar(&o.binary, "binary", "bin/quaymaster", "the program under test")
	flag.DurationVar(&o.every, "every", 300*time.Millisecond, "mean pause between two acts")
	flag.DurationVar(&o.long, "long", 2*time.Second, "how long a long exchange takes")
	flag.DurationVar(&o.patience, "patience", 5*time.Second, "how long the machine may take until it is as it must be; more on a slow host")
	flag.StringVar(&o.only, "only", "", "names of the acts that may happen, separated by commas; all without it")
	flag.BoolVar(&o.race, "race", false, "the program was built with the race detector")
	flag.BoolVar(&o.halts, "halts", true, "halt the program for moments while it reloads")
	flag.BoolVar(&keep, "keep", false, "leave configuration, journals and logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := whole(ctx, o, keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// whole runs in a folder of its own, which stays when there is something to look at.
func whole(ctx context.Context, o options, keep bool) (ok bool, err error) {
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return false, err
	}
	if o.self, err = os.Executable(); err != nil {
		return false, err
	}
	if o.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
		return false, err
	}
	fmt.Printf("seed %d, %v, files in %s\n", o.seed, o.duration, o.dir)
	c, tally, err := run(ctx, o)
	fmt.Print(c.summary(tally))
	if ok = err == nil && tally.Bad == 0; ok && !keep {
		return true, os.RemoveAll(o.dir)
	}
	fmt.Println("files are kept in", o.dir)
	return ok, err
}
