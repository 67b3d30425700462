package relay

import (
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// BenchmarkShortTunnel is one small request and answer through a tunnel, sockets made outside of the clock.
func BenchmarkShortTunnel(b *testing.B) {
	request, answer := make([]byte, 517), make([]byte, 4<<10)
	got := make([]byte, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		client, near := pairOf(b, "tcp")
		target, far := pairOf(b, "tcp")
		t := &Tunnel{Client: End{Conn: near, Head: request}, Target: End{Conn: far}, Idle: time.Minute}
		b.StartTimer()
		done := make(chan struct{})
		go func() {
			io.ReadFull(target, got[4<<10:][:517])
			target.Write(answer)
			target.(*net.TCPConn).CloseWrite()
			close(done)
		}()
		go func() {
			io.ReadFull(client, got[:len(answer)])
			client.(*net.TCPConn).CloseWrite()
		}()
		if r := t.Run(); r.Up != 517 || r.Down != int64(len(answer)) {
			b.Fatal(r)
		}
		<-done
		b.StopTimer()
		for _, c := range []net.Conn{client, near, target, far} {
			c.Close()
		}
		b.StartTimer()
	}
}

// BenchmarkPingPong is a small message each way through a tunnel that lasts.
func BenchmarkPingPong(b *testing.B) {
	j := join(b, "tcp", "tcp", &Tunnel{Idle: time.Minute})
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		j.client.Write(buf)
		io.ReadFull(j.target, buf)
		j.target.Write(buf)
		io.ReadFull(j.client, buf)
	}
}

// BenchmarkBulk moves a gigabyte through a tunnel in a process of its own and reports what CPU time that process took.
func BenchmarkBulk(b *testing.B) {
	const size = 1 << 30
	chunk := make([]byte, 256<<10)
	var cpu time.Duration
	for b.Loop() {
		tl, _ := net.Listen("tcp", "127.0.0.1:0")
		cmd := exec.Command(os.Args[0], "-test.run", "^TestBulkChild$")
		cmd.Env = append(os.Environ(), "RELAY_TARGET="+tl.Addr().String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		addr := make([]byte, 64)
		n, _ := out.Read(addr)
		client, err := net.Dial("tcp", string(addr[:n]))
		if err != nil {
			b.Fatal(err)
		}
		target, _ := tl.Accept()
		go func() {
			for range size / len(chunk) {
				target.Write(chunk)
			}
			target.Close()
		}()
		if got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{client}, make([]byte, 256<<10)); got != size {
			b.Fatal(got, err)
		}
		client.Close()
		tl.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		cpu += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.SetBytes(size)
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/GiB")
}

// TestBulkChild is the process that BenchmarkBulk measures.
func TestBulkChild(t *testing.T) {
	addr := os.Getenv("RELAY_TARGET")
	if addr == "" {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString(l.Addr().String())
	client, _ := l.Accept()
	l.Close()
	target, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	tun := Tunnel{Client: End{Conn: client}, Target: End{Conn: target}, Idle: time.Minute}
	if os.Getenv("RELAY_COPY") != "" {
		tun.Client.Conn = wrapped{client.(*net.TCPConn)}
	}
	tun.Run()
	client.Close()
	target.Close()
}
