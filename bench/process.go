//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The ports of a run, below the ephemeral range. The proxy has its core for itself.
const (
	proxyPort  = 18080
	sniPort    = 18443
	tlsPort    = 18444
	targetHTTP = 18090
	targetRaw  = 18091
	proxyCore  = "0"
	loadCore   = "1"
)

// process is a program pinned to a core, with its children.
type process struct {
	cmd *exec.Cmd
	log *os.File
	end chan struct{}
}

// pinned starts a program on one core, in a process group of its own; its output goes to a file.
func pinned(core, log string, name string, args ...string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("taskset", append([]string{"-c", core, name}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Dir(log), f, f // what a program drops where it stands goes with the run
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = f.Close()
		return nil, err
	}
	p := &process{cmd: cmd, log: f, end: make(chan struct{})}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	_ = p.cmd.Wait()
	close(p.end)
}

// stop kills the group and waits.
func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.end
	for range 200 { // workers are not our children: wait until they are gone too
		if len(tree(p.cmd.Process.Pid)) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = p.log.Close()
}

// tree is every process of the group that pid leads.
func tree(pid int) []int {
	var out []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		text := string(b)
		w := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(w) > 2 && w[0] != "Z" && w[2] == strconv.Itoa(pid) {
			id, _ := strconv.Atoi(strings.Split(s, "/")[2])
			out = append(out, id)
		}
	}
	return out
}

// cpu is the time all threads of the group have run, in the kernel's own nanoseconds (schedstat).
func (p *process) cpu() time.Duration {
	var sum int64
	for _, pid := range tree(p.cmd.Process.Pid) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			n, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			sum += n
		}
	}
	return time.Duration(sum)
}

// rss is the resident memory of the group in bytes.
func (p *process) rss() int64 {
	var sum int64
	for _, pid := range tree(p.cmd.Process.Pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
		sum += n * int64(os.Getpagesize())
	}
	return sum
}

// awaitPort returns when somebody accepts on the port.
func awaitPort(ctx context.Context, port int) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// startTarget starts the servers that stand behind every proxy.
func (b *bench) startTarget(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.target, err = pinned(loadCore, filepath.Join(b.dir, "target.log"), self, "target",
		strconv.Itoa(targetHTTP), strconv.Itoa(targetRaw))
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	return awaitPort(ctx, targetHTTP)
}
