package holder

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
)

func TestEveryoneNamesAllThatShareASocketAndNoClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	heir := exec.Command("/bin/sleep", "600") // has the socket and does not know
	heir.ExtraFiles = []*os.File{f}
	client := exec.Command("/bin/sleep", "600")
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cf, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer cf.Close()
	client.ExtraFiles = []*os.File{cf}
	for _, cmd := range []*exec.Cmd{heir, client} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	all, err := Everyone(func(a netip.AddrPort) bool { return a.Port() == port })
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, h := range all {
		seen[h.Pid] = true
		if is, ok := Process(h.Pid); !ok || !is.Started.Equal(h.Started) || h.Inode == 0 || h.Addr.Port() != port || h.UID != os.Getuid() {
			t.Errorf("%+v, and later %+v", h, is)
		}
	}
	if len(all) != 2 || !seen[os.Getpid()] || !seen[heir.Process.Pid] {
		t.Errorf("holders %v, want %d and %d", seen, os.Getpid(), heir.Process.Pid)
	}
	if got := Parent(heir.Process.Pid); got != os.Getpid() {
		t.Errorf("the parent of our child is %d, we are %d", got, os.Getpid())
	}
	if Parent(1) != 0 {
		t.Errorf("process 1 descends from %d", Parent(1))
	}
}
