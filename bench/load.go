//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// loaded is what a load process prints when it is done.
type loaded struct {
	Count  int64 // requests, connections or rounds that went well
	Failed int64
	Bytes  int64
	Took   float64 // seconds
	P99    float64 // milliseconds
	Worst  float64 // milliseconds
}

// runLoad is the load process: KIND PORT SECONDS-OR-COUNT.
func runLoad(args []string) {
	port, _ := strconv.Atoi(args[1])
	n, _ := strconv.Atoi(args[2])
	addr := "127.0.0.1:" + strconv.Itoa(port)
	var l loaded
	switch args[0] {
	case "sni-new":
		l = sniNew(addr, time.Duration(n)*time.Second)
	case "sni-small":
		l = sniSmall(addr, time.Duration(n)*time.Second)
	case "sni-bulk":
		l = sniBulk(addr, n)
	case "tls-new":
		l = tlsNew(addr, time.Duration(n)*time.Second, false)
	case "tls-resumed":
		l = tlsNew(addr, time.Duration(n)*time.Second, true)
	case "tls-large":
		l = large(dialTLS(addr), n)
	case "tls-idle":
		l = idle(dialTLS(addr), n)
	case "idle":
		l = idle(dialTCP(addr), n)
	case "burst":
		l = burst(addr, n)
	case "large":
		l = large(dialTCP(addr), n)
	case "poll":
		l = poll(addr, time.Duration(n)*time.Second)
	default:
		fmt.Fprintln(os.Stderr, "unknown load", args[0])
		os.Exit(2)
	}
	_ = json.NewEncoder(os.Stdout).Encode(l)
}

// clientHello is a real ClientHello of crypto/tls for bench.test.
func clientHello() []byte {
	a, b := net.Pipe()
	go func() { _ = tls.Client(a, &tls.Config{ServerName: "bench.test", InsecureSkipVerify: true}).Handshake() }()
	var head [5]byte
	_, _ = io.ReadFull(b, head[:])
	rest := make([]byte, int(head[3])<<8|int(head[4]))
	_, _ = io.ReadFull(b, rest)
	_, _ = a.Close(), b.Close()
	return append(head[:], rest...)
}

// fresh is the hello with a random of its own (RFC 8446 section 4.1.2), as every client sends.
func fresh(hello []byte, then byte) []byte {
	h := append(bytes.Clone(hello), then)
	_, _ = rand.Read(h[11:43])
	return h
}

// many runs f in n goroutines until it says no more, and returns the sum of what went well and wrong.
func many(n int, f func(seen func(time.Duration, bool)) bool) loaded {
	var l loaded
	var mu sync.Mutex
	var times []time.Duration
	var good, bad atomic.Int64
	begin := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var mine []time.Duration
			for f(func(d time.Duration, ok bool) {
				if !ok {
					bad.Add(1)
					return
				}
				good.Add(1)
				mine = append(mine, d)
			}) {
			}
			mu.Lock()
			times = append(times, mine...)
			mu.Unlock()
		}()
	}
	wg.Wait()
	l.Took = time.Since(begin).Seconds()
	l.Count, l.Failed = good.Load(), bad.Load()
	if len(times) > 0 {
		slices.Sort(times)
		l.P99 = float64(times[len(times)*99/100].Microseconds()) / 1000
		l.Worst = float64(times[len(times)-1].Microseconds()) / 1000
	}
	return l
}

func sniNew(addr string, length time.Duration) loaded {
	hello := clientHello()
	end := time.Now().Add(length)
	return many(16, func(seen func(time.Duration, bool)) bool {
		begin := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			seen(0, false)
			return time.Now().Before(end)
		}
		_, _ = c.Write(fresh(hello, 'n'))
		n, _ := io.Copy(io.Discard, c)
		_ = c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports would run out
		_ = c.Close()
		seen(time.Since(begin), n == 100)
		return time.Now().Before(end)
	})
}

func sniSmall(addr string, length time.Duration) loaded {
	hello := clientHello()
	end := time.Now().Add(length)
	return many(64, func(seen func(time.Duration, bool)) bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			seen(0, false)
			return false
		}
		defer c.Close()
		_, _ = c.Write(fresh(hello, 's'))
		buf := make([]byte, 64)
		for time.Now().Before(end) {
			begin := time.Now()
			if _, err := c.Write(buf); err != nil {
				seen(0, false)
				return false
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				seen(0, false)
				return false
			}
			seen(time.Since(begin), true)
		}
		return false
	})
}

func sniBulk(addr string, transfers int) loaded {
	hello := clientHello()
	var left, bytes atomic.Int64
	left.Store(int64(transfers))
	l := many(2, func(seen func(time.Duration, bool)) bool {
		if left.Add(-1) < 0 {
			return false
		}
		begin := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			seen(0, false)
			return true
		}
		defer c.Close()
		_, _ = c.Write(fresh(hello, 'b'))
		n := discard(c)
		bytes.Add(n)
		seen(time.Since(begin), n == rawBulk)
		return true
	})
	l.Bytes = bytes.Load()
	return l
}

// dialer opens a connection to the proxy.
type dialer func() (net.Conn, error)

func dialTCP(addr string) dialer { return func() (net.Conn, error) { return net.Dial("tcp", addr) } }

func dialTLS(addr string) dialer {
	return func() (net.Conn, error) { return tls.Dial("tcp", addr, clientTLS()) }
}

// clientTLS is a client without a session. X25519 alone, since not every peer's library has the hybrid that costs more.
func clientTLS() *tls.Config {
	return &tls.Config{
		ServerName: "bench.test", InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519},
	}
}

// tlsNew makes a connection per request. With resume each client goes on with the session of its first.
func tlsNew(addr string, length time.Duration, resume bool) loaded {
	end := time.Now().Add(length)
	var next atomic.Int64
	caches := make([]tls.ClientSessionCache, 16)
	for i := range caches {
		caches[i] = tls.NewLRUClientSessionCache(4)
	}
	return many(len(caches), func(seen func(time.Duration, bool)) bool {
		cfg := clientTLS()
		if resume {
			cfg.ClientSessionCache = caches[int(next.Add(1))%len(caches)]
		}
		begin := time.Now()
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			seen(0, false)
			return time.Now().Before(end)
		}
		c := tls.Client(raw, cfg)
		ok := once(c) && c.ConnectionState().NegotiatedProtocol == ""
		_ = raw.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports would run out
		_ = raw.Close()
		seen(time.Since(begin), ok)
		return time.Now().Before(end)
	})
}

// discard reads until the end in large pieces.
func discard(c net.Conn) (n int64) {
	buf := make([]byte, 1<<20)
	for {
		k, err := c.Read(buf)
		n += int64(k)
		if err != nil {
			return n
		}
	}
}

// large fetches the 64 MiB body over keep-alive connections, and counts every byte.
func large(dial dialer, transfers int) loaded {
	var left, sum atomic.Int64
	left.Store(int64(transfers))
	l := many(4, func(seen func(time.Duration, bool)) bool {
		c, err := dial()
		if err != nil {
			seen(0, false)
			return false
		}
		defer c.Close()
		buf := make([]byte, 1<<20)
		for left.Add(-1) >= 0 {
			begin := time.Now()
			n, err := fetchLarge(c, buf)
			sum.Add(n)
			seen(time.Since(begin), err == nil && n == int64(sizes["/64m"]))
			if err != nil {
				return false
			}
		}
		return false
	})
	l.Bytes = sum.Load()
	return l
}

func fetchLarge(c net.Conn, buf []byte) (body int64, err error) {
	if _, err = io.WriteString(c, "GET /64m HTTP/1.1\r\nHost: bench.test\r\n\r\n"); err != nil {
		return 0, err
	}
	have, head := 0, -1
	for head < 0 {
		n, err := c.Read(buf[have:])
		if err != nil {
			return 0, err
		}
		have += n
		head = bytes.Index(buf[:have], []byte("\r\n\r\n"))
	}
	if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("answer %.20q", buf)
	}
	body = int64(have - head - 4)
	for body < int64(sizes["/64m"]) {
		n, err := c.Read(buf)
		body += int64(n)
		if err != nil {
			return body, err
		}
	}
	return body, nil
}

const small = "GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"

// idle opens n connections, each with one request behind it, says so, and holds them until its input ends.
func idle(dial dialer, n int) loaded {
	var l loaded
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := dial()
		if err != nil {
			l.Failed++
			continue
		}
		if once(c) {
			l.Count++
		} else {
			l.Failed++
		}
		conns = append(conns, c)
	}
	_ = json.NewEncoder(os.Stdout).Encode(l)
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range conns { // still alive?
		if !once(c) {
			l.Failed++
		}
	}
	return l
}

func once(c net.Conn) bool {
	if _, err := io.WriteString(c, small); err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 512)
	have := 0
	for {
		n, err := c.Read(buf[have:])
		have += n
		if i := bytes.Index(buf[:have], []byte("\r\n\r\n")); i >= 0 && have-i-4 >= sizes["/"] {
			return bytes.HasPrefix(buf, []byte("HTTP/1.1 200"))
		}
		if err != nil {
			return false
		}
	}
}

// burst opens n connections at once; each asks once and stays until all have been answered.
func burst(addr string, n int) loaded {
	var mu sync.Mutex
	var conns []net.Conn
	l := many(n, func(seen func(time.Duration, bool)) bool {
		begin := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			seen(0, false)
			return false
		}
		ok := once(c)
		seen(time.Since(begin), ok)
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		return false
	})
	_ = json.NewEncoder(os.Stdout).Encode(l)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	for _, c := range conns {
		_ = c.Close()
	}
	return l
}

// poll asks every millisecond on one connection and reports the slowest answer.
func poll(addr string, length time.Duration) loaded {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return loaded{Failed: 1}
	}
	end := time.Now().Add(length)
	return many(1, func(seen func(time.Duration, bool)) bool {
		begin := time.Now()
		ok := once(c)
		seen(time.Since(begin), ok)
		time.Sleep(time.Millisecond)
		if !ok {
			_ = c.Close()
			if c, err = net.Dial("tcp", addr); err != nil {
				return false
			}
		}
		return time.Now().Before(end)
	})
}
