//go:build !linux

package launch

import "syscall"

// forkInto starts nothing: there are no control groups here.
func forkInto(string, string, []string, *syscall.ProcAttr) (pid int, ok bool) { return 0, false }
