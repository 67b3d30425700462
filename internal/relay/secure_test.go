package relay

import (
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

// secured is a TLS connection of ours.
type secured struct {
	*tls.Conn
	tcp *net.TCPConn
}

func (s *secured) ReadNow(p []byte) (int, error) {
	k := s.NetConn().(*wire.Carrier)
	k.Now(true)
	defer k.Now(false)
	return s.Read(p)
}

func (s *secured) SetLinger(sec int) error { return s.tcp.SetLinger(sec) }

// certificate is good for 127.0.0.1.
var certificate = sync.OnceValue(func() tls.Certificate {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates[0]
})

// secure puts TLS on a pair of sockets: near is as the program has it, and is the server where asServer says so.
func secure(t testing.TB, far, near net.Conn, version uint16, asServer bool) (net.Conn, *secured) {
	t.Helper()
	under := wire.NewCarrier(near)
	n := &secured{tcp: near.(*net.TCPConn)}
	server := &tls.Config{Certificates: []tls.Certificate{certificate()}, MaxVersion: version, DynamicRecordSizingDisabled: true}
	client := &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true}
	var f *tls.Conn
	if asServer {
		n.Conn, f = tls.Server(under, server), tls.Client(far, client)
	} else {
		n.Conn, f = tls.Client(under, client), tls.Server(far, server)
	}
	done := make(chan error, 1)
	go func() { done <- f.Handshake() }()
	if err := n.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return f, n
}

// BenchmarkBulkBody moves a gigabyte from a target to a client as the body of an answer, in a process of its own, and
// reports what CPU time that process took.
func BenchmarkBulkBody(b *testing.B) {
	for _, kinds := range []string{"plain plain", "tls plain", "plain tls", "tls tls", "tls chunked-plain", "tls chunked-tls"} {
		b.Run(strings.ReplaceAll(kinds, " ", "-to-"), func(b *testing.B) {
			var cpu time.Duration
			for b.Loop() {
				cpu += bulk(b, kinds)
			}
			b.SetBytes(bulkSize)
			b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/GiB")
		})
	}
}

const bulkSize = 1 << 30

func bulk(b *testing.B, kinds string) time.Duration {
	source, sink, _ := strings.Cut(kinds, " ")
	tl, _ := net.Listen("tcp", "127.0.0.1:0")
	defer tl.Close()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestBulkBodyChild$")
	cmd.Env = append(os.Environ(), "RELAY_TARGET="+tl.Addr().String(), "RELAY_KINDS="+kinds)
	cmd.Stderr = os.Stderr
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
	defer client.Close()
	if strings.HasSuffix(sink, "tls") {
		client = tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	}
	target, _ := tl.Accept()
	defer target.Close()
	if source == "tls" {
		target = tls.Server(target, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	}
	if client, ok := client.(*tls.Conn); ok {
		go func() { _ = client.Handshake() }()
	}
	go func() {
		chunk := make([]byte, 256<<10)
		for range bulkSize / len(chunk) {
			_, _ = target.Write(chunk)
		}
	}()
	if got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{client}, make([]byte, 256<<10)); got < bulkSize {
		b.Fatal(got, err)
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestBulkBodyChild is the process that BenchmarkBulkBody measures.
func TestBulkBodyChild(t *testing.T) {
	addr, kinds := os.Getenv("RELAY_TARGET"), os.Getenv("RELAY_KINDS")
	if kinds == "" {
		return
	}
	source, sink, _ := strings.Cut(kinds, " ")
	certificate()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString(l.Addr().String())
	client, _ := l.Accept()
	_ = l.Close()
	target, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if source == "tls" {
		target = &secured{Conn: tls.Client(wire.NewCarrier(target), &tls.Config{InsecureSkipVerify: true})}
	}
	framing := wire.ByLength
	if sink, chunked := strings.CutPrefix(sink, "chunked-"); sink == "tls" {
		client = tls.Server(wire.NewCarrier(client), &tls.Config{Certificates: []tls.Certificate{certificate()}, DynamicRecordSizingDisabled: true})
		if chunked {
			framing = wire.ByChunks
		}
	} else if chunked {
		framing = wire.ByChunks
	}
	for _, c := range []net.Conn{target, client} {
		if c, ok := c.(interface{ Handshake() error }); ok && c.Handshake() != nil {
			t.Fatal("no handshake")
		}
	}
	var body wire.BodyReader
	var out wire.BodyWriter
	body.Reset(target, wire.GetBuffer(), wire.ByLength, bulkSize, nil)
	out.Start(client, nil, framing, bulkSize)
	if n, err := Body(&out, &body, &Flow{Read: time.Minute, Write: time.Minute}); n != bulkSize || err != nil {
		t.Error(n, err)
	}
	_ = client.Close()
	_ = target.Close()
}
