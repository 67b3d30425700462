//go:build !freebsd && !dragonfly

package launch

import "syscall"

func setLimit(l *syscall.Rlimit, soft, hard uint64) { l.Cur, l.Max = soft, hard }
