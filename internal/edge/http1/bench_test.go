package http1

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/quaymaster/quaymaster/internal/wire"
)

var (
	contentType = []byte("Content-Type")
	textPlain   = []byte("text/plain")
	hello       = []byte("hello, hello, hello, hello, hello, hello, hello, hello, hello!\n")
)

// greeter answers 200 with a small body, and keeps the head it answers with.
type greeter struct{ h wire.Head }

func (g *greeter) handle(ex *wire.Exchange) {
	h := &g.h
	h.Reset()
	h.Status = 200
	h.Add(contentType, textPlain)
	s, err := ex.Out.Begin(h, int64(len(hello)))
	if err != nil {
		return
	}
	if _, err := s.Write(hello); err != nil {
		return
	}
	_ = s.Close(nil)
}

const browser = "GET /a/b?c=d HTTP/1.1\r\nHost: example.org\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Referer: https://example.org/some/where/else?with=query\r\nConnection: keep-alive\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n" +
	"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\r\n"

// conversation is a served connection and what a client needs to exchange one request on it.
func conversation(tb testing.TB, request string) (exchange func(), end func()) {
	c, s := pair(tb)
	over := make(chan error)
	var info wire.ConnInfo
	go func() {
		err := Serve(s, &info, nil, &Options{Handle: new(greeter).handle, Settings: settings})
		s.Close()
		over <- err
	}()
	req := []byte(request)
	buf := make([]byte, 4096)
	exchange = func() {
		if _, err := c.Write(req); err != nil {
			tb.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(buf[:n], hello); {
			m, err := c.Read(buf[n:])
			if err != nil && !errors.Is(err, io.EOF) {
				tb.Fatal(err)
			}
			n += m
		}
	}
	return exchange, func() {
		c.Close()
		if err := <-over; err != nil {
			tb.Error(err)
		}
	}
}

func BenchmarkServe(b *testing.B) {
	exchange, end := conversation(b, browser)
	defer end()
	exchange()
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
}
