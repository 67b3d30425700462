package launch

import (
	"slices"
	"strings"
)

// Clean leaves out of an environment what was meant for us alone: by the service manager, whose socket would let a
// program answer for us; by our own names; and what the Go runtime reads, of which a program in Go has its own idea.
// GOPATH and its like are for people, and stay.
func Clean(env []string) []string {
	out := make([]string, 0, len(env))
	for _, v := range env {
		name, _, ok := strings.Cut(v, "=")
		if !ok || slices.Contains(ours, name) || slices.ContainsFunc(oursToo, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		out = append(out, v)
	}
	return out
}

var (
	ours = []string{
		"NOTIFY_SOCKET", "FDSTORE", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID",
		"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY",
		"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GORACE", "GOTRACEBACK", "GOCOVERDIR",
	}
	oursToo = []string{"LISTEN_", "WATCHDOG_", "QUAYMASTER_", "MEMORY_PRESSURE_"}
)

// merge is base with the variables of over, the last of each name alone.
func merge(base, over []string) []string {
	at := make(map[string]int)
	var out []string
	for _, v := range slices.Concat(base, over) {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := at[name]; ok {
			out[i] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}
