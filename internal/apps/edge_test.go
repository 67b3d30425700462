package apps_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestNobodyIsWokenAtTheEnd(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("slow", "stubborn", func(a *plan.App) { a.Stop.Timeout = 2 * time.Second }),
		app("web", "serve", func(a *plan.App) { a.Start, a.IdleStop = "on_request", time.Hour }))
	f.until("slow", apps.Ready)
	f.until("web", apps.Sleeping)
	closed := make(chan error, 1)
	late, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	go func() { closed <- f.apps.Close(late) }()
	f.wait("web is told of the end", func() bool { return strings.Contains(f.is("web").Reason, "quaymaster is stopping") })
	if err := f.apps.Wake(late, "web"); err == nil {
		t.Error("it was woken")
	}
	if err := <-closed; err != nil || f.runner.count("web") != 0 {
		t.Errorf("%v; started %d times", err, f.runner.count("web"))
	}
}

func TestA13_AnAnswerWithoutAnEndIsTold(t *testing.T) {
	t.Parallel()
	f := newFloor(t, app("web", "endless", func(a *plan.App) { a.Ready.Timeout = 3 * time.Second }))
	f.wait("the reason is there", func() bool {
		return strings.Contains(f.is("web").Reason, "the head of the answer is longer than 16384 bytes")
	})
}

func TestA21_APathThatIsTooLongIsCutOrRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 63)
	for _, q := range []struct {
		dir  int
		want apps.State
	}{{40, apps.Ready}, {85, apps.Ready}, {95, apps.Failed}} {
		t.Run(fmt.Sprint(q.dir), func(t *testing.T) {
			t.Parallel()
			base, err := os.MkdirTemp("", "s")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(base) })
			f := newFloorAt(t, filepath.Join(base, strings.Repeat("d", q.dir-len(base)-1)), app(long, "serve", func(a *plan.App) { a.Socket = "unix" }))
			s := f.until(long, q.want)
			if q.want == apps.Failed {
				if !strings.Contains(s.Reason, " bytes; write a shorter admin.socket") {
					t.Error(s.Reason)
				}
				return
			}
			c, err := net.Dial("unix", s.Path)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		})
	}
}
