package proxy

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"

	"github.com/quaymaster/quaymaster/internal/preview"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// maxBase is how much of a page is held back to find its <base href>.
const maxBase = 16 << 10

// changeable reports whether the body of an answer is HTML as it stands.
func changeable(h *wire.Head) bool {
	if h.Status != http.StatusOK {
		return false
	}
	if _, coded := h.Field("Content-Encoding"); coded {
		return false
	}
	kind, _ := h.Field("Content-Type")
	kind, _, _ = bytes.Cut(kind, []byte{';'})
	return wire.EqualFold(bytes.Trim(kind, " \t"), "text/html")
}

// based is the body of a page whose <base href> is put below prefix. It holds back what comes before it, and no more than
// maxBase.
type based struct {
	wire.Body
	prefix string
	head   []byte // what was read and not given yet
	found  bool   // head may be given
	err    error  // of the body, after head
}

// Read gives the page as it came but for its base.
func (b *based) Read(p []byte) (int, error) {
	for !b.found && b.err == nil {
		if b.head == nil {
			b.head = make([]byte, 0, maxBase)
		}
		n, err := b.Body.Read(b.head[len(b.head):cap(b.head)])
		b.head = b.head[:len(b.head)+n]
		at, more := -1, true
		if bytes.IndexByte(b.head[len(b.head)-n:], '>') >= 0 { // else no tag has ended: who says it byte by byte is not read anew for each
			at, more = preview.Base(b.head, b.prefix)
		}
		b.found = !more || len(b.head) == cap(b.head)
		if at >= 0 {
			b.head = bytes.Join([][]byte{b.head[:at], b.head[at:]}, []byte(b.prefix))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			b.err = err
		} else if !b.found { // it may be read again
			return 0, err
		}
	}
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	if b.err != nil {
		return 0, b.err
	}
	return b.Body.Read(p)
}

// Buffered is what can be given at once.
func (b *based) Buffered() int {
	switch {
	case !b.found && b.err == nil:
		return 0
	case len(b.head) > 0:
		return len(b.head)
	case b.err != nil:
		return -1
	}
	return b.Body.Buffered()
}

// Len is not known, as the page may become longer.
func (b *based) Len() int64 { return -1 }

// Raw is never possible.
func (b *based) Raw() (*net.TCPConn, []byte, int64, bool) { return nil, nil, 0, false }
