package relay

import (
	"encoding/binary"
	"sync/atomic"
)

// goingAway is a close frame of a WebSocket server with status 1001 (RFC 6455 sections 5.5.1 and 7.4.1).
var goingAway = []byte{0x88, 2, 1001 >> 8, 1001 & 0xff}

const opClose = 8

// frames finds where the frames of a WebSocket begin and end. It belongs to the direction it watches, but for leave.
type frames struct {
	leave  atomic.Bool // the client is to be told to go away
	parted bool        // it was told, or the target did: nothing more may be said
	closed bool        // the target has sent a close frame of its own

	head [14]byte
	have int    // bytes of the header seen
	left uint64 // bytes of the payload to come
}

// mayLeave reports whether the word may be spoken now.
func (f *frames) mayLeave() bool { return f.left == 0 && f.have == 0 && !f.parted }

// walk follows p and returns how much of it was walked: all of it, or as far as the first end of a frame if stop is set.
func (f *frames) walk(p []byte, stop bool) int {
	i := 0
	for i < len(p) {
		if f.left > 0 {
			n := int(min(f.left, uint64(len(p)-i)))
			f.left -= uint64(n)
			i += n
			continue
		}
		if stop && f.have == 0 {
			return i
		}
		f.head[f.have] = p[i]
		f.have++
		i++
		f.header()
	}
	return i
}

// header reads the header once it is complete (RFC 6455 section 5.2). A server's frame is not masked, but one that is
// has its end found too.
func (f *frames) header() {
	if f.have < 2 {
		return
	}
	size, n := 2, uint64(f.head[1]&0x7f)
	switch n {
	case 126:
		size, n = 4, uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		size, n = 10, binary.BigEndian.Uint64(f.head[2:])
	}
	if f.head[1]&0x80 != 0 {
		size += 4
	}
	if f.have < size {
		return
	}
	f.have, f.left = 0, n
	if f.head[0]&0x0f == opClose {
		f.closed = true
	}
}

// passFrames writes p and, when it is time, the last word behind the first frame that ends. What comes after that is
// dropped.
func (m *mover) passFrames(p []byte) error {
	f := m.frames
	if f.parted {
		return nil
	}
	if err := m.write(p[:f.walk(p, f.leave.Load())]); err != nil {
		return err
	}
	if f.leave.Load() && f.mayLeave() {
		return m.part()
	}
	return nil
}

// part tells the client to go away, unless the target has said so.
func (m *mover) part() error {
	m.frames.parted = true
	if m.frames.closed {
		return nil
	}
	return m.write(goingAway)
}
