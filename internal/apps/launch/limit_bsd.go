//go:build freebsd || dragonfly

package launch

import (
	"math"
	"syscall"
)

func setLimit(l *syscall.Rlimit, soft, hard uint64) {
	l.Cur, l.Max = int64(min(soft, math.MaxInt64)), int64(min(hard, math.MaxInt64))
}
