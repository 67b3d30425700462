//go:build !race

package wire

import (
	"io"
	"testing"
)

func TestMessagesAllocateNothing(t *testing.T) {
	here, there := pair(t)
	go func() { _, _ = io.Copy(io.Discard, there) }()
	head, body := b("HTTP/1.1 200 OK\r\n\r\n"), make([]byte, 6000)
	var w BodyWriter
	one := func() {
		w.Start(here, head, ByLength, int64(len(body)))
		_, _ = w.Write(body)
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
	}
	one()
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHeadsAllocateNothing(t *testing.T) {
	in, out := []byte(browser), make([]byte, 0, 4096)
	var h Head
	one := func() {
		if n, _, err := ParseRequest(in, 0, &h, manyFields); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		out = AppendRequest(out[:0], &h, 0)
		h.Status = 200
		out = AppendResponse(out[:0], &h, ByLength, 5, true)
	}
	one()
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
