package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// sharedOut is a control group (version 2) that shares out memory and processors, or "".
func sharedOut() string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		text, _ := os.ReadFile(mount + "/cgroup.controllers")
		if unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC && strings.Contains(string(text), "memory") && strings.Contains(string(text), "cpu ") {
			return mount
		}
	}
	return ""
}

// delegate makes a group as systemd makes one for a unit with Delegate=yes, and below it one for the daemon, unless that
// is to be in the group itself (DelegateSubgroup=).
func delegate(t *testing.T, sub string) (unit, daemon string) {
	t.Helper()
	mount := sharedOut()
	if err := put(mount+"/cgroup.subtree_control", "+memory +cpu"); err != nil {
		t.Fatal(err)
	}
	unit = fmt.Sprintf("%s/quaymaster-test-%d-%s.service", mount, os.Getpid(), sub)
	daemon = filepath.Join(unit, sub)
	if err := os.MkdirAll(daemon, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{filepath.Join(unit, groupsName), daemon, unit} {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: %v", dir, err)
			}
		}
	})
	if err := unix.Setxattr(unit, "trusted.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	return unit, daemon
}

// TestLimitsAreKept runs where control groups share out memory, and elsewhere in a kernel of its own.
func TestLimitsAreKept(t *testing.T) {
	switch {
	case os.Geteuid() != 0:
		t.Skip("only root makes control groups")
	case sharedOut() == "":
		inAKernelOfItsOwn(t)
		return
	}
	for _, sub := range []string{"daemon", ""} {
		unit, daemon := delegate(t, sub)
		cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, daemon, me(t).Command[0], "limited", t.TempDir())
		out, err := cmd.CombinedOutput()
		want := []string{"memory: killed: out of memory", "cpu: throttled", "memory.max 33554432", "cpu.max 20000 100000"}
		if sub == "" { // it is in the group itself, as where systemd does not know DelegateSubgroup=
			want = []string{"cpu and memory are not limited: quaymaster is in the control group " + unit + " itself", "DelegateSubgroup=daemon", "memory: exit code 0", "cpu: exit code 0"}
		}
		for _, w := range want {
			if err != nil || !strings.Contains(string(out), w) {
				t.Errorf("in %q: %v, no %q in\n%s", sub, err, w, out)
			}
		}
	}
}

// inAKernelOfItsOwn runs the test there.
func inAKernelOfItsOwn(t *testing.T) {
	t.Helper()
	kernel, err := exec.LookPath("linux.uml")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil || raceEnabled || testing.Short() { // the race detector wants more addresses than there are
		t.Skip("control groups of this machine share out no memory, and linux.uml (user-mode-linux) is not there")
	}
	dir := t.TempDir()
	self := me(t).Command[0]
	init := fmt.Sprintf("#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin\nmount -t proc proc /proc; mount -t sysfs sys /sys; mount -t cgroup2 cg /sys/fs/cgroup\n"+
		"mount -t tmpfs tmp %[1]s/tmp; TMPDIR=%[1]s/tmp %[2]s -test.run '^%[3]s$' -test.v > %[1]s/out 2>&1\necho o > /proc/sysrq-trigger\n", dir, self, t.Name())
	if err := os.WriteFile(dir+"/init", []byte(init), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kernel, "mem=256M", "rootfstype=hostfs", "rootflags=/", "rw", "init="+dir+"/init", "con=null", "con0=null,null", "umid=quaymaster-"+filepath.Base(filepath.Dir(dir)), "uml_dir="+dir)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // where its memory is; /dev/shm may be small
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(4*patience, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	late.Stop()
	out, err := os.ReadFile(dir + "/out")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skip("linux.uml does not come up here")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
}

// limited is a daemon that runs an app that wants more memory than it may have, and one that wants more of a processor.
func limited(dir string) {
	self, _ := os.Executable()
	log := printer{}
	r := New(Options{Launcher: "/proc/self/exe", Args: []string{"launch"}, Dir: dir, Log: log.logger()})
	for _, q := range []struct {
		name, word string
		limits     plan.AppLimits
	}{{"memory", "eat=48", plan.AppLimits{Memory: 32 << 20}}, {"cpu", "burn", plan.AppLimits{CPU: 0.2}}} {
		i, err := r.Start(context.Background(), &run.Start{App: &plan.App{Name: q.name, Command: []string{self, "app", q.word, "burn"}, Limits: q.limits}, Listener: -1, Output: log})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		group := i.(*instance).group.path
		for _, file := range []string{"memory.max", "cpu.max"} {
			text, _ := os.ReadFile(filepath.Join(group, file))
			fmt.Printf("%s %s", file, text)
		}
		throttled := false
		for over := false; !over; {
			select {
			case <-i.Done():
				over = true
			case <-time.After(10 * time.Millisecond):
				text, _ := os.ReadFile(filepath.Join(group, "cpu.stat"))
				throttled = throttled || strings.Contains(string(text), "nr_throttled") && !strings.Contains(string(text), "nr_throttled 0")
			}
		}
		fmt.Printf("%s: %v\n", q.name, i.Exit())
		if throttled {
			fmt.Printf("%s: throttled\n", q.name)
		}
	}
}
