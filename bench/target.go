//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// serveTargets serves HTTP on the first port and raw connections on the second, with as little work as can be, so that
// the proxy is what is measured.
func serveTargets(ports []string) {
	done := make(chan error, 2)
	go listen(ports[0], serveHTTP, done)
	go listen(ports[1], serveRaw, done)
	fmt.Fprintln(os.Stderr, <-done)
	os.Exit(1)
}

func listen(port string, serve func(net.Conn), done chan<- error) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			go serve(c)
		}
	}
	done <- err
}

// answer is a whole response with a body of n bytes.
func answer(n int) []byte {
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(n) + "\r\n\r\n"
	return append([]byte(head), bytes.Repeat([]byte("x"), n)...)
}

// sizes are the bodies there are, by path.
var sizes = map[string]int{"/": 63, "/100k": 100 << 10, "/64m": 64 << 20}

func serveHTTP(c net.Conn) {
	defer c.Close()
	small, medium := answer(sizes["/"]), answer(sizes["/100k"])
	buf := make([]byte, 8192)
	have := 0
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if end < 0 {
			continue
		}
		path, _, _ := strings.Cut(string(buf[4:min(end, 16)]), " ")
		have = copy(buf, buf[end+4:have])
		switch path {
		case "/100k":
			_, err = c.Write(medium)
		case "/64m":
			err = writeLarge(c, sizes[path])
		default:
			_, err = c.Write(small)
		}
		if err != nil {
			return
		}
	}
}

var megabyte = bytes.Repeat([]byte("x"), 1<<20)

func writeLarge(c net.Conn, n int) error {
	if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n); err != nil {
		return err
	}
	for ; n > 0; n -= len(megabyte) {
		if _, err := c.Write(megabyte[:min(n, len(megabyte))]); err != nil {
			return err
		}
	}
	return nil
}

// rawBulk is what a bulk transfer behind a ClientHello is long.
const rawBulk = 256 << 20

// serveRaw reads one TLS record, the ClientHello, and then does what the byte behind it says: n = answer 100 bytes and
// close, s = send back every 64 bytes, b = send rawBulk bytes and close.
func serveRaw(c net.Conn) {
	defer c.Close()
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	rest := make([]byte, int(binary.BigEndian.Uint16(head[3:]))+1)
	if _, err := io.ReadFull(c, rest); err != nil {
		return
	}
	switch rest[len(rest)-1] {
	case 'n':
		_, _ = c.Write(megabyte[:100])
	case 's':
		buf := make([]byte, 64)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	case 'b':
		for n := rawBulk; n > 0; n -= len(megabyte) {
			if _, err := c.Write(megabyte); err != nil {
				return
			}
		}
	}
}
