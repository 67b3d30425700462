package pools

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// TestAQuietSweeperHoldsNoDescriptor is not parallel: it counts the pipes of the process.
func TestAQuietSweeperHoldsNoDescriptor(t *testing.T) {
	srv := serve(t, name("a"))
	before := pipes(t)
	u := upstream("web", target(t, srv.URL))
	u.Pool.Idle = 50 * time.Millisecond
	all := []*plan.Upstream{u}
	for i := range 20 { // enough that the sweeper stops to let others go on
		all = append(all, upstream(fmt.Sprintf("other%02d", i), target(t, srv.URL)))
	}
	ps := run(t, Options{}, all...)
	var s Stream
	_, _, err := exchange(ps.Pool("web"), &Ask{}, &s)
	must(t, err)
	until(t, "swept", func() bool { return ps.conns.Load() == 0 })
	until(t, "the sweeper's pipe is closed", func() bool { return pipes(t) == before })
}

// pipes counts the descriptors of the process that lead to pipes.
func pipes(t *testing.T) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range list {
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%s", e.Name())); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}
