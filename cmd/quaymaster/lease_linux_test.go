package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestD02_LeaseThatCannotBeKeptIsRefused(t *testing.T) {
	t.Parallel()
	body, _, serves := leasing(t, 5)
	for name, c := range map[string]struct {
		spoil, mend func(q *qm, dir string)
		says        string
	}{
		"full": {
			spoil: func(q *qm, dir string) { fillUp(q.t, dir) },
			mend:  func(q *qm, dir string) { _ = os.Remove(dir + "/filler") },
			says:  "no space left on device",
		},
		"read-only": {
			spoil: func(q *qm, _ string) { // from the start on: a disk is not remounted under a file that is open for writing
				q.signal(os.Kill)
				q.wait(20 * time.Second)
				q.remountState(unix.MS_RDONLY, "")
				q.run()
				q.serving()
			},
			mend: func(q *qm, _ string) { q.remountState(0, "") },
			says: "read-only file system",
		},
	} {
		q := prepare(t, body)
		dir := q.onDisk("size=128k")
		q.run()
		q.serving()
		web := q.lease("web")
		kept := fmt.Sprint(q.onDiskLeases())
		c.spoil(q, dir)
		for _, args := range [][]string{{"ports", "lease", "new"}, {"ports", "lease", "web", "--new"}, {"ports", "release", "web"}} {
			out, code := q.cli(args...)
			if code != 1 || !strings.Contains(out, c.says) || !strings.Contains(out, "forgotten at the next start") {
				t.Errorf("%s: %v: exit %d\n%s", name, args, code, out)
			}
		}
		if q.lease("web") != web || len(q.leased()) != 1 || fmt.Sprint(q.onDiskLeases()) != kept {
			t.Errorf("%s: leases %v, on the disk %v", name, q.leased(), q.onDiskLeases())
		}
		mustFetch(t, serves, "f.test", "/", "served")
		c.mend(q, dir)
		q.lease("new")
		if fmt.Sprint(q.leased()) != fmt.Sprint(q.onDiskLeases()) {
			t.Errorf("%s: listed %v, on the disk %v", name, q.leased(), q.onDiskLeases())
		}
		q.signal(os.Kill)
		q.wait(20 * time.Second)
	}
}
