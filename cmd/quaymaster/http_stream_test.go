package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// memory is the most that the daemon ever had resident, in bytes.
func (q *qm) memory() int64 {
	q.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", q.cmd.Process.Pid))
	if err != nil {
		q.t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				q.t.Fatal(err)
			}
			return n << 10
		}
	}
	q.t.Fatal("no VmHWM")
	return 0
}

func TestH06_EventsArriveAtOnce(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	for name, head := range map[string]string{
		"chunked":          "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
		"until close":      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
		"announced length": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10485760\r\n\r\n",
	} {
		t.Run("H06 "+name, func(t *testing.T) {
			target := script(t, func(c net.Conn, r *bufio.Reader) {
				readHead(r)
				_, _ = io.WriteString(c, head)
				for i := range 5 { // each event waits until the client has the one before
					<-next
					event := fmt.Sprintf("data: %d\n\n", i)
					if name == "chunked" {
						event = fmt.Sprintf("%x\r\n%s\r\n", len(event), event)
					}
					_, _ = io.WriteString(c, event)
				}
				<-next
			})
			p := freePort(t)
			start(t, "routes:\n"+forwardTo("a", p, "", target))
			c := dial(t, p)
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil) // the head, before any byte of the body
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 9)
			for i := range 5 {
				next <- struct{}{}
				if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != fmt.Sprintf("data: %d\n\n", i) {
					t.Fatalf("event %d: %q %v", i, b, err)
				}
			}
			next <- struct{}{}
		})
	}
	// And the other way: what a client says piece by piece is at the target piece by piece.
	heard := make(chan string)
	target := script(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		b := make([]byte, 4)
		for range 5 {
			if _, err := io.ReadFull(req.Body, b); err != nil {
				return
			}
			heard <- string(b)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	p := freePort(t)
	start(t, "routes:\n"+forwardTo("a", p, "", target))
	c := dial(t, p)
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	for i := range 5 {
		fmt.Fprintf(c, "4\r\nup %d\r\n", i)
		if got := <-heard; got != fmt.Sprintf("up %d", i) {
			t.Errorf("piece %d: %q", i, got)
		}
	}
}

// flood is n bytes, made as they are read.
func flood(n int64) io.Reader { return io.LimitReader(zeros{}, n) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// floodTarget sends as many bytes as the path says, or counts what comes. It never looks at them.
func floodTarget(t testing.TB) string {
	return httpTarget(t, "flood", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
			return
		}
		size, chunked := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), "/chunked")
		n, _ := strconv.ParseInt(size, 10, 64)
		if !chunked {
			w.Header().Set("Content-Length", size)
		}
		b := make([]byte, 256<<10)
		for n > 0 {
			m, err := w.Write(b[:min(n, int64(len(b)))])
			if err != nil {
				return
			}
			n -= int64(m)
		}
	})
}

func TestH06_LargeBodiesInFlatMemory(t *testing.T) {
	t.Parallel()
	p := freePort(t)
	q := start(t, "routes:\n"+forwardTo("a", p, "", floodTarget(t)))
	client := &http.Client{Timeout: time.Minute}
	url := "http://" + at(p) + "/"
	down := func(n int64, path string) {
		t.Helper()
		res, err := client.Get(url + strconv.FormatInt(n, 10) + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b := make([]byte, 1<<20)
		got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, b)
		if got != n || err != nil {
			t.Errorf("download%s: %d of %d bytes, %v", path, got, n, err)
		}
	}
	up := func(n, length int64) {
		t.Helper()
		req, _ := http.NewRequest("POST", url, io.NopCloser(flood(n)))
		req.ContentLength = length
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); string(b) != strconv.FormatInt(n, 10) {
			t.Errorf("upload: the target got %s of %d, %v", b, n, err)
		}
	}
	begin := time.Now()
	down(256<<20, "")
	up(256<<20, 256<<20)
	size := int64(5 << 30)
	switch took := time.Since(begin); { // so that the full size takes less than 20 s
	case testing.Short():
		size = 256 << 20
	case took > 700*time.Millisecond:
		size = 1 << 30
	}
	t.Logf("%d MB each way", size>>20)
	before := q.memory()
	down(size, "")
	up(size, size)
	down(size/8, "/chunked") // by hand, not by the kernel
	up(size/8, -1)
	if grown := q.memory() - before; grown > 24<<20 {
		t.Errorf("%d MB each way: the daemon grew by %d MB", size>>20, grown>>20)
	}
	if in, out := q.metric(`quaymaster_bytes_total{direction="in",route="a"}`), q.metric(`quaymaster_bytes_total{direction="out",route="a"}`); in != float64(256<<20+size+size/8) || out < in {
		t.Errorf("counted %v in, %v out", in, out)
	}
}

// standstill waits until n has not grown for a quarter of a second, and returns it.
func standstill(t testing.TB, n *atomic.Int64) int64 {
	t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for last := int64(-1); ; {
		<-tick.C
		now := n.Load()
		if now == last && now > 0 {
			return now
		}
		last = now
	}
}

func TestH06_BackPressureBothWays(t *testing.T) {
	t.Parallel()
	const size = 256 << 20
	const bound = 48 << 20 // what four socket buffers and a pipe can hold at most
	for _, framing := range []string{"Content-Length: " + strconv.Itoa(size), "Transfer-Encoding: chunked"} {
		var sent atomic.Int64
		write := func(c net.Conn) error {
			b := make([]byte, 64<<10)
			chunked := strings.HasPrefix(framing, "Transfer")
			for sent.Load() < size {
				if chunked {
					if _, err := io.WriteString(c, "10000\r\n"); err != nil {
						return err
					}
				}
				if _, err := c.Write(b); err != nil {
					return err
				}
				sent.Add(int64(len(b)))
				if chunked {
					_, _ = io.WriteString(c, "\r\n")
				}
			}
			if chunked {
				_, _ = io.WriteString(c, "0\r\n\r\n")
			}
			return nil
		}
		let := make(chan struct{})
		target := script(t, func(c net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.Method == "GET" {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n"+framing+"\r\n\r\n")
				_ = write(c)
				return
			}
			<-let
			n, _ := io.Copy(io.Discard, req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d", n)
		})
		p := freePort(t)
		q := start(t, "routes:\n"+forwardTo("a", p, "", target))
		before := q.memory()
		down := dial(t, p)
		_, _ = io.WriteString(down, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if n := standstill(t, &sent); n > bound {
			t.Errorf("%s: %d MB left the target while the client read nothing", framing, n>>20)
		}
		res, err := http.ReadResponse(bufio.NewReader(down), nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
			t.Errorf("%s: then %d of %d bytes came, %v", framing, n, size, err)
		}
		_ = down.Close()

		sent.Store(0)
		up := dial(t, p)
		_, _ = io.WriteString(up, "POST / HTTP/1.1\r\nHost: x\r\n"+framing+"\r\n\r\n")
		wrote := make(chan error, 1)
		go func() { wrote <- write(up) }()
		if n := standstill(t, &sent); n > bound {
			t.Errorf("%s: %d MB left the client while the target read nothing", framing, n>>20)
		}
		close(let)
		if err := <-wrote; err != nil {
			t.Errorf("%s: %v", framing, err)
		}
		if res, err := http.ReadResponse(bufio.NewReader(up), nil); err != nil {
			t.Errorf("%s: %v", framing, err)
		} else if b, _ := io.ReadAll(res.Body); string(b) != strconv.Itoa(size) {
			t.Errorf("%s: the target got %s", framing, b)
		}
		if grown := q.memory() - before; grown > 24<<20 {
			t.Errorf("%s: the daemon grew by %d MB", framing, grown>>20)
		}
	}
}

func TestH11_SlowHeadersAreCut(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	q := start(t, "timeouts: {request_header: 700ms, keep_alive: 10s}\nroutes:\n"+forwardTo("a", p, "", s.addr))
	for name, x := range map[string]struct{ first, piece string }{
		"first request":  {"", "X-A: b\r\n"},
		"second request": {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "y"},
	} {
		t.Run("H11 "+name, func(t *testing.T) {
			c := dial(t, p)
			r := bufio.NewReader(c)
			if x.first != "" {
				say(t, c, r, x.first)
			}
			begin := time.Now()
			_, _ = io.WriteString(c, "GET /slow HTTP/1.1\r\nX: ")
			over := make(chan struct{})
			defer close(over)
			go func() { // moves all the time, and still has to be done in time
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						if _, err := io.WriteString(c, "y"); err != nil {
							return
						}
					case <-over:
						return
					}
				}
			}()
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); res.StatusCode != 408 || !res.Close || took < 500*time.Millisecond || took > 5*time.Second {
				t.Errorf("%d after %v, closes: %v", res.StatusCode, took, res.Close)
			}
		})
	}
	q.until("it is counted", func() bool { return q.rejected("header_timeout") == 2 })
	if strings.Contains(s.text(), "slow") {
		t.Error("a head that never ended reached the target")
	}
}

func TestH11_BodiesThatStandStillAreCutAndSlowOnesLive(t *testing.T) {
	t.Parallel()
	target := httpTarget(t, "", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			fmt.Fprint(w, n)
		}
	})
	p := freePort(t)
	q := start(t, "timeouts: {body_stall: 1s, idle: 1s, response_header: 1s, request_header: 1s}\nroutes:\n"+forwardTo("a", p, "", target))
	slow := func(t *testing.T, framing string, piece func(i int) string, end string) (*http.Response, string) {
		c := dial(t, p)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n"+framing+"\r\n\r\n")
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for i := range 10 { // 2.5 s: longer than any of the clocks
			<-tick.C
			_, _ = io.WriteString(c, piece(i))
		}
		return say(t, c, bufio.NewReader(c), end)
	}
	for name, x := range map[string]struct{ framing, piece, end, want string }{
		"length":  {"Content-Length: 10", "x", "", "10"},
		"chunked": {"Transfer-Encoding: chunked", "1\r\nx\r\n", "0\r\n\r\n", "10"},
		"large":   {"Content-Length: 100000", strings.Repeat("x", 10_000), "", "100000"},
	} {
		t.Run("H11 moving, "+name, func(t *testing.T) {
			t.Parallel()
			if res, body := slow(t, x.framing, func(int) string { return x.piece }, x.end); res.StatusCode != 200 || body != x.want {
				t.Errorf("%d %q", res.StatusCode, body)
			}
		})
		t.Run("H11 standing, "+name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			got := send(t, p, "POST /stall HTTP/1.1\r\nHost: x\r\n"+x.framing+"\r\n\r\n"+x.piece)
			answers := letters(t, got, "POST")
			if took := time.Since(begin); len(answers) != 1 || !strings.HasPrefix(answers[0].start, "HTTP/1.1 408 ") || answers[0].one("Connection") != "close" || took > 8*time.Second {
				t.Errorf("%q after %v, want 408 and the end of the connection", got, took)
			}
			q.until("it is logged", func() bool { return strings.Contains(q.out.String(), `"reason":"body_stall"`) })
		})
	}
}

func TestH11_ClientsThatTakeNothingAreCut(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	target := script(t, func(c net.Conn, r *bufio.Reader) {
		readHead(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
		_, _ = io.Copy(c, flood(1<<30))
		close(gone)
	})
	p := freePort(t)
	q := start(t, "timeouts: {body_stall: 1s}\nroutes:\n"+forwardTo("a", p, "", target))
	c := dial(t, p)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case <-gone:
	case <-time.After(15 * time.Second):
		t.Fatal("a client that reads nothing holds its target for ever")
	}
	q.until("it is logged", func() bool { return strings.Contains(q.out.String(), `"reason":"body_stall"`) })
	q.until("its slot is free", func() bool { return q.metric("quaymaster_connections_active") == 0 })
}
