package control

import (
	"context"
	"os"
	"testing"
	"time"
)

// watch runs Watch until the test ends.
func (r *rig) watch() {
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- r.loop.Watch(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			r.t.Error(err)
		}
	})
}

func TestWatch_SeesWhatChangedBeforeItBegan(t *testing.T) {
	r := newRig(t, one("x"))
	r.write(one("y"))
	r.wait("config.committed") // of the start
	r.watch()
	r.wait("config.committed")
	r.want("y")
}

func TestWatch_ABrokenFileKeepsTheOldOne(t *testing.T) {
	r := newRig(t, one("x"))
	r.wait("config.committed")
	r.watch()
	r.write("routes: [")
	r.wait("config.refused")
	r.want("x")
	r.write(one("x")) // as before: the fault must go
	r.wait("config.committed")
	if e := r.loop.Now().Error; e != "" {
		t.Error(e)
	}
}

func TestWatch_WritesInPlaceAreOneChange(t *testing.T) {
	r := newRig(t, one("x"))
	r.wait("config.committed")
	r.watch()
	f, err := os.OpenFile(r.file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"routes:\n", one("y")[len("routes:\n"):20], one("y")[20:], ""} {
		if _, err := f.WriteString(piece); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	r.wait("config.committed")
	r.want("y")
	if n := len(r.events); n != 0 {
		t.Errorf("%d more events: a torn file was taken", n)
	}
}

func TestWatch_DoesNotConfirmTheReloadThatWasFaster(t *testing.T) {
	r := newRig(t, one("x"))
	r.wait("config.committed")
	r.watch()
	r.write(one("y"))
	r.reload(ReloadOptions{Confirm: time.Hour})
	r.write(one("y") + "# touched again\n") // a change of bytes alone is still a change: this one confirms
	r.wait("config.committed")
	r.wait("config.committed")
	r.loop.mu.Lock() // the event comes before the change is over
	if r.loop.undo != nil {
		t.Error("a later change of the file leaves the old wait standing")
	}
	r.loop.mu.Unlock()
	r.write(one("z"))
	r.reload(ReloadOptions{Confirm: 600 * time.Millisecond}) // longer than the watch takes
	r.wait("config.undone")
	r.want("y")
}
