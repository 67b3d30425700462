package wire

import (
	"errors"
	"net"
	"sync"
)

// Buffers start at bufferSize, where an ordinary head and a small body fit, and are kept for reuse up to keptSize.
const (
	bufferSize = 4 << 10
	keptSize   = 16 << 10
)

// ErrTooLarge is what Fill says when as many bytes as allowed are there and the message is still not complete.
var ErrTooLarge = errors.New("message head is too large")

// Buffer is a growable read buffer with one owner. Bytes [r:w) have been read and not consumed; what stands before keep
// belongs to a head that is still in use, and is neither moved nor overwritten by the reading of its body.
type Buffer struct {
	b          []byte
	keep, r, w int
}

// buffers hold what no connection is using: an idle connection has none.
var buffers = sync.Pool{New: func() any { return &Buffer{b: make([]byte, bufferSize)} }}

// GetBuffer takes a buffer of at least 4 KiB from the pool.
func GetBuffer() *Buffer { return buffers.Get().(*Buffer) }

// Put gives the buffer back. Nothing may point into it any more.
func (b *Buffer) Put() {
	if len(b.b) > keptSize {
		return
	}
	b.keep, b.r, b.w = 0, 0, 0
	buffers.Put(b)
}

// Bytes are the unconsumed bytes.
func (b *Buffer) Bytes() []byte { return b.b[b.r:b.w] }

// Discard consumes n bytes.
func (b *Buffer) Discard(n int) { b.r += n }

// Append copies p behind the unconsumed bytes.
func (b *Buffer) Append(p []byte) {
	for len(b.b)-b.w < len(p) {
		b.grow(b.w - b.r + len(p))
	}
	b.w += copy(b.b[b.w:], p)
}

// Fill reads once from c into free space, growing the buffer up to max unconsumed bytes (ErrTooLarge beyond). It is for
// heads: no body is being read, and slices into the buffer from before are no longer valid.
func (b *Buffer) Fill(c net.Conn, max int) (n int, err error) {
	p, err := b.Room(max)
	if err != nil {
		return 0, err
	}
	n, err = c.Read(p)
	b.Extend(n)
	if n > 0 {
		err = nil // of TLS 1.2, whose end may come with the last bytes; the next read says it again
	}
	return n, err
}

// Room is the free space behind the unconsumed bytes, at least one byte, made as Fill makes it. Whoever reads into it
// says so with Extend.
func (b *Buffer) Room(max int) ([]byte, error) {
	b.keep = 0
	if b.w-b.r >= max {
		return nil, ErrTooLarge
	}
	b.makeRoom(512)
	return b.b[b.w:], nil
}

// Extend adds the n bytes that were read into Room.
func (b *Buffer) Extend(n int) { b.w += n }

// makeRoom frees at least least bytes behind w and touches nothing before keep.
func (b *Buffer) makeRoom(least int) {
	if b.r == b.w {
		b.r, b.w = b.keep, b.keep
	}
	for len(b.b)-b.w < least {
		if b.r > b.keep && b.w-b.r+least <= len(b.b)-b.keep {
			b.w = b.keep + copy(b.b[b.keep:], b.b[b.r:b.w])
			b.r = b.keep
			return
		}
		b.grow(b.w - b.r + least)
	}
}

// grow moves the unconsumed bytes to a larger array with room for at least need. The old array is left to whoever still
// points into it.
func (b *Buffer) grow(need int) {
	size := 2 * len(b.b)
	for size < need {
		size *= 2
	}
	larger := make([]byte, size)
	b.w = copy(larger, b.b[b.r:b.w])
	b.r, b.keep, b.b = 0, 0, larger
}
