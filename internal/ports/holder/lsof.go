package holder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	lsofTime = 10 * time.Second
	maxLsof  = 16 << 20 // bytes of its output
)

// Command is what tells who holds a port where this process cannot look.
func Command(proto string, port uint16) string {
	cmd := "lsof -nP -i" + strings.ToUpper(proto) + ":" + strconv.Itoa(int(port))
	if proto == "tcp" {
		cmd += " -sTCP:LISTEN"
	}
	return cmd
}

// lsof asks the program of that name, where the kernel's tables cannot be read; why says why.
func lsof(proto string, match func(netip.AddrPort) bool, why error) ([]Holder, error) {
	args := []string{"-nP", "-iTCP", "-sTCP:LISTEN", "-FpcuLn"}
	if proto == "udp" {
		args = []string{"-nP", "-iUDP", "-FpcuLn"}
	}
	out, err := runLsof(args)
	if err != nil {
		return nil, fmt.Errorf("%w; %w", why, err)
	}
	found := parseLsof(proto, out, match)
	if len(found) == 0 && os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w; %w", why, errOwnOnly)
	}
	return found, nil
}

var (
	errNoLsof  = errors.New("lsof is not installed")
	errOwnOnly = errors.New("lsof shows nobody, but to this user it shows only what is this user's")
)

// runLsof is its output. It exits 1 when it finds nothing, and when a part of what it looked at was closed to it.
func runLsof(args []string) (string, error) {
	path, err := exec.LookPath("lsof")
	if err != nil {
		return "", errNoLsof
	}
	ctx, cancel := context.WithTimeout(context.Background(), lsofTime)
	defer cancel()
	out, said := &head{max: maxLsof}, &head{max: 4 << 10}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = out, said
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("lsof gave no answer within %v", lsofTime)
	case errors.As(err, &exit) && exit.ExitCode() == 1 && (out.Len() > 0 || said.Len() == 0):
	case err != nil && said.Len() > 0:
		return "", fmt.Errorf("lsof: %s", clean(said.String()))
	case err != nil:
		return "", fmt.Errorf("lsof: %w", err)
	}
	return out.String(), nil
}

// head keeps the first max bytes of what is written.
type head struct {
	bytes.Buffer
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), max(h.max-h.Len(), 0))])
	return len(p), nil
}

// parseLsof reads the output of lsof -F: one field a line, its first letter says which. The oldest process of those that
// share a socket comes first, since lsof goes by pid.
func parseLsof(proto, out string, match func(netip.AddrPort) bool) []Holder {
	var holders []Holder
	var h Holder
	seen := make(map[netip.AddrPort]bool)
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		switch value := line[1:]; line[0] {
		case 'p':
			h = Holder{Proto: proto}
			h.Pid, _ = strconv.Atoi(value)
		case 'c':
			h.name, h.Command = clean(value), clean(value)
			h.Helper, h.Engine = helperOf("", value)
			h.quaymaster = value == "quaymaster"
		case 'u':
			h.UID, _ = strconv.Atoi(value)
			h.User = userName(h.UID)
		case 'L':
			h.User = clean(value)
		case 'n': // *:443, 127.0.0.1:80, [::1]:80, or a connected 10.0.0.1:53->10.0.0.2:99
			at, err := netip.ParseAddrPort(strings.Replace(value, "*:", "[::]:", 1))
			if err == nil && match(at) && len(holders) < maxHolders && !seen[at] {
				h.Addr, seen[at] = at, true
				holders = append(holders, h)
			}
		}
	}
	return holders
}
