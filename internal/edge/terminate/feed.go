package terminate

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/internal/wire"
)

const (
	recordHeader    = 5
	maxPlain        = 16 << 10 // bytes in one record
	applicationData = 23
	// feedSize holds a whole record of any version.
	feedSize = recordHeader + maxPlain + 2048
)

// feeds hold what came in and was not decrypted yet.
var feeds = sync.Pool{New: func() any { return new([feedSize]byte) }}

// A feed is what tls.Conn takes for the connection. It never gives more than the rest of one record at once, so that
// tls.Conn holds nothing back that could have been waited for here, and it waits without a buffer.
type feed struct {
	*wire.Carrier                 // what it is written through
	raw           syscall.RawConn // nil where c is no socket
	try           func(fd uintptr) bool

	b    []byte          // what was read and not given
	own  *[feedSize]byte // the storage of b, nil where it is the caller's
	err  error           // why try read nothing
	left int             // bytes of the record that were not given
	head [recordHeader]byte
	n    int // bytes of the header seen
	// more bounds how many decrypted bytes tls.Conn may hold; overhead is what a record has besides them.
	more, overhead int

	// Of the handshake.
	ctx   context.Context
	until time.Time
	local net.Addr // nil: that of the connection
}

// LocalAddr is where the client came to, which those go by who choose a certificate.
func (f *feed) LocalAddr() net.Addr {
	if f.local != nil {
		return f.local
	}
	return f.Carrier.LocalAddr()
}

// Read implements net.Conn.
func (f *feed) Read(p []byte) (int, error) {
	if len(f.b) == 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.b[:f.record(f.b[:min(len(p), len(f.b))])])
	f.b = f.b[n:]
	if len(f.b) == 0 {
		f.drop()
	}
	return n, nil
}

// record says how many of these bytes belong to the present record, and takes them for given.
func (f *feed) record(b []byte) int {
	if f.left == 0 {
		n := copy(f.head[f.n:], b)
		if f.n += n; f.n < recordHeader {
			return n
		}
		size := int(binary.BigEndian.Uint16(f.head[3:]))
		f.n, f.left = 0, n+size
		if f.head[0] == applicationData {
			f.more += max(size-f.overhead, 0)
		}
	}
	n := min(len(b), f.left)
	f.left -= n
	return n
}

// fill waits for bytes, and holds no buffer while it does.
func (f *feed) fill() error {
	if f.raw == nil {
		return f.fillPlain()
	}
	f.err = nil
	if err := f.raw.Read(f.try); err != nil {
		return err
	}
	return f.err
}

// tryRead is the func for RawConn.Read: false means that nothing is there.
func (f *feed) tryRead(fd uintptr) bool {
	own := feeds.Get().(*[feedSize]byte)
	for {
		n, err := syscall.Read(int(fd), own[:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == nil && n > 0:
			f.own, f.b = own, own[:n]
			return true
		case err == nil:
			f.err = io.EOF
		case err != syscall.EAGAIN:
			f.err = os.NewSyscallError("read", err)
		}
		feeds.Put(own)
		return err != syscall.EAGAIN
	}
}

func (f *feed) fillPlain() error {
	own := feeds.Get().(*[feedSize]byte)
	n, err := f.Carrier.Conn.Read(own[:])
	if n == 0 {
		feeds.Put(own)
		return err
	}
	f.own, f.b = own, own[:n]
	return nil
}

// drop gives the storage of what was given back.
func (f *feed) drop() {
	if f.own != nil {
		feeds.Put(f.own)
	}
	f.own, f.b = nil, nil
}

// SetDeadline and its like implement net.Conn. The deadlines are those of Conn, which sets them below.
func (f *feed) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (f *feed) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (f *feed) SetWriteDeadline(time.Time) error { return nil }
