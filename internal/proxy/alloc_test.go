package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// echoless is a target that answers every head with the same bytes and allocates nothing.
func echoless(t testing.TB, answer string) string {
	return rawTarget(t, func(c net.Conn, r *bufio.Reader) {
		_ = c.SetDeadline(time.Time{})
		out := []byte(answer)
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) > 2 {
				continue
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	})
}

// rounds returns a func that sends request and reads the whole answer, without allocating.
func (h *house) rounds(request string) func() {
	c := h.dial()
	_ = c.SetDeadline(time.Time{})
	in, out, end := make([]byte, 8192), []byte(request), []byte("hello, client")
	return func() {
		if _, err := c.Write(out); err != nil {
			h.t.Error(err)
			return
		}
		for n := 0; !bytes.HasSuffix(in[:n], end); {
			m, err := c.Read(in[n:])
			if err != nil {
				h.t.Error(err)
				return
			}
			n += m
		}
	}
}

const (
	plainAnswer  = "HTTP/1.1 200 OK\r\nDate: Mon, 06 May 2024 07:08:09 GMT\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, client"
	plainRequest = "GET /a/b?c=d HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: bench/1.0 (a client like any other)\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nCookie: a=b; c=d\r\n\r\n"
)

// everything is a forward with all that an ordinary route may ask for.
func everything(addr string) *wish {
	w := forwardTo(addr)
	w.action = plan.Forward{
		Upstream:        "api",
		Rewrite:         plan.Rewrite{StripPrefix: "/a"},
		RequestHeaders:  plan.HeaderRules{Set: []plan.Header{{Name: "X-Client", Value: "{client_ip} {request_id}"}}},
		ResponseHeaders: plan.HeaderRules{Set: []plan.Header{{Name: "X-Route", Value: "{route}"}}, Remove: []string{"Server"}},
		Retries:         plan.Retries{Attempts: 2, Connect: true, Statuses: []int{502, 503}, Budget: 0.2},
	}
	w.timeouts = plan.Timeouts{ResponseHeader: time.Minute, BodyStall: time.Minute, Idle: time.Minute}
	w.security.MaxBody = 1 << 20
	return w
}

func TestForwardAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, w := range map[string]*wish{
		"plain":      forwardTo(echoless(t, plainAnswer)),
		"everything": everything(echoless(t, plainAnswer)),
	} {
		h := build(t, w)
		h.silent = true
		round := h.rounds(plainRequest)
		for range 100 {
			round()
		}
		most := 0.0
		if name == "everything" {
			most = 2
		}
		if n := testing.AllocsPerRun(2000, round); n > most {
			t.Errorf("%s: %v allocations an exchange, at most %v", name, n, most)
		} else {
			t.Logf("%s: %v allocations an exchange", name, n)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	for name, w := range map[string]*wish{"plain": forwardTo(echoless(b, plainAnswer)), "everything": everything(echoless(b, plainAnswer))} {
		b.Run(name, func(b *testing.B) {
			h := build(b, w)
			h.silent = true
			round := h.rounds(plainRequest)
			b.ReportAllocs()
			for b.Loop() {
				round()
			}
		})
	}
}

// BenchmarkDirect is the same conversation without a proxy between, to be taken off BenchmarkForward.
func BenchmarkDirect(b *testing.B) {
	h := &house{t: b, addr: echoless(b, plainAnswer)}
	round := h.rounds(plainRequest)
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
}

func BenchmarkRespond(b *testing.B) {
	h := build(b, &wish{action: plan.Respond{Body: "hello, client"}})
	h.silent = true
	round := h.rounds(plainRequest)
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
}

func BenchmarkUpload(b *testing.B) {
	addr := rawTarget(b, func(c net.Conn, r *bufio.Reader) {
		_ = c.SetDeadline(time.Time{})
		answer := []byte(plainAnswer)
		for {
			for line := []byte("x"); len(line) > 2 || line[0] == 'x'; {
				var err error
				if line, err = r.ReadSlice('\n'); err != nil {
					return
				}
			}
			if _, err := io.CopyN(io.Discard, r, 32<<10); err != nil {
				return
			}
			_, _ = c.Write(answer)
		}
	})
	h := build(b, forwardTo(addr))
	h.silent = true
	round := h.rounds("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 32768\r\n\r\n" + string(make([]byte, 32<<10)))
	b.SetBytes(32 << 10)
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
}

func BenchmarkCopyFields(b *testing.B) {
	f := newForward(&plan.Forward{RequestHeaders: plan.HeaderRules{Set: []plan.Header{{Name: "X-Client", Value: "{client_ip}"}}}})
	t := sampleTurn()
	for _, s := range []string{"User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Cookie", "Referer", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Cache-Control"} {
		t.ex.Req.Add([]byte(s), []byte("some value that is not too short"))
	}
	b.ReportAllocs()
	for b.Loop() {
		t.ex.Scratch = t.ex.Scratch[:0]
		t.out.Fields = t.out.Fields[:0]
		f.copyFields(t)
	}
}
