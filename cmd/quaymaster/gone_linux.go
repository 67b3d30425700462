package main

import (
	"bytes"
	"fmt"
	"os"
)

// ended reports whether the process is a zombie: it is over, and only its parent has not asked how.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return os.IsNotExist(err)
	}
	// pid (command) state ...; the command may hold anything, parentheses too.
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	return ok && len(rest) > 0 && rest[0] == 'Z'
}
