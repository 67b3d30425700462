package wire

import (
	"errors"
	"io"
)

// What a chunked body may hold besides its bytes (RFC 9112 section 7.1).
const (
	maxChunkDigits = 16
	maxExtensions  = 4 << 10 // bytes of extensions, of all chunks together
	maxTrailer     = 16 << 10
	maxTrailers    = 64
)

var (
	errChunkSize  = refuse(400, "malformed chunk size")
	errChunkEnd   = refuse(400, "chunk does not end where it should")
	errExtensions = refuse(400, "chunk extensions are too large")
	errTrailer    = refuse(400, "trailer section is too large")
)

// chunkPart is what comes next in a chunked body once the bytes of the present chunk are read.
type chunkPart uint8

const (
	chunkSize chunkPart = iota
	chunkEnd            // CRLF behind the bytes of a chunk
	chunkTrailer
)

// chunkState is where a chunked body stands between the bytes of its chunks.
type chunkState struct {
	part       chunkPart
	from       int // where to look on for the end of a line
	extensions int
	trailer    Head // only its Fields are used
}

func (s *chunkState) reset() {
	s.part, s.from, s.extensions = chunkSize, 0, 0
	s.trailer.Fields = s.trailer.Fields[:0]
}

// readChunks gives as much as it can without waiting, and waits only for the first byte.
func (r *BodyReader) readChunks(p []byte) (n int, err error) {
	for n < len(p) {
		if r.left == 0 {
			if ready, err := r.nextChunk(n == 0); err != nil {
				return n, r.later(n, err)
			} else if !ready {
				return n, nil
			}
			continue
		}
		q := p[n:]
		if int64(len(q)) > r.left {
			q = q[:r.left]
		}
		m := r.take(q)
		if m == 0 {
			if n > 0 {
				return n, nil
			}
			if m, err = r.more(q); err != nil {
				return 0, cutOff(err)
			}
		}
		n += m
		if r.left -= int64(m); r.left == 0 {
			r.chunks.part, r.chunks.from = chunkEnd, 0
		}
	}
	if r.left == 0 {
		if _, err := r.nextChunk(false); err != nil {
			return n, r.later(n, err)
		}
	}
	return n, nil
}

// later keeps an error for the next Read when there are bytes to give first. The end of the body need not wait.
func (r *BodyReader) later(n int, err error) error {
	if errors.Is(err, io.EOF) || n == 0 {
		return err
	}
	r.err = err
	return nil
}

// more reads bytes of the present chunk when the buffer has none: straight into q, or through the buffer where that
// brings the next chunk's head along.
func (r *BodyReader) more(q []byte) (int, error) {
	if len(q) >= direct {
		return r.wait(q)
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	return r.take(q), nil
}

// fill reads once into the buffer, behind the head that is still in use.
func (r *BodyReader) fill() error {
	b := r.buf
	b.makeRoom(1 << 10)
	n, err := r.wait(b.b[b.w:])
	b.Extend(n)
	return err
}

// nextChunk reads what stands between the bytes of two chunks, or behind the last. It is true with a new chunk begun,
// io.EOF at the end of the body, and false when it would have to wait and may not.
func (r *BodyReader) nextChunk(wait bool) (bool, error) {
	for {
		again, err := r.chunkPart()
		if err != nil || r.left > 0 {
			return err == nil, err
		}
		if again {
			continue
		}
		if !wait {
			return false, nil
		}
		if err := r.fill(); err != nil {
			return false, cutOff(err)
		}
	}
}

// chunkPart reads one part if the buffer holds all of it.
func (r *BodyReader) chunkPart() (done bool, err error) {
	b, s := r.buf.Bytes(), &r.chunks
	switch s.part {
	case chunkEnd:
		if len(b) > 0 && b[0] != '\r' || len(b) > 1 && b[1] != '\n' {
			return false, errChunkEnd
		}
		if len(b) < 2 {
			return false, nil
		}
		r.buf.Discard(2)
		s.part, s.from = chunkSize, 0
		return true, nil
	case chunkSize:
		return r.sizeLine(b)
	}
	return r.trailers(b)
}

// sizeLine reads "1*HEXDIG [chunk-ext] CRLF".
func (r *BodyReader) sizeLine(b []byte) (done bool, err error) {
	s := &r.chunks
	end, err := line(b, s.from)
	if err != nil {
		return false, err
	}
	digits := 0
	size := uint64(0)
	for digits < len(b) && hexValue(b[digits]) >= 0 {
		if digits == maxChunkDigits {
			return false, errChunkSize
		}
		size = size<<4 | uint64(hexValue(b[digits]))
		digits++
	}
	if end < 0 {
		if s.from = ^end; s.from-digits+s.extensions > maxExtensions {
			return false, errExtensions
		}
		return false, nil
	}
	if digits == 0 || size > 1<<63-1 || !extension(b[digits:end]) {
		return false, errChunkSize
	}
	if s.extensions += end - digits; s.extensions > maxExtensions {
		return false, errExtensions
	}
	r.buf.Discard(end + 2)
	s.from, r.left = 0, int64(size)
	if size == 0 {
		s.part = chunkTrailer
	}
	return true, nil
}

// extension reports whether what stands behind a chunk's size is nothing, or begins as an extension does.
func extension(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	b = trim(b)
	return len(b) > 0 && b[0] == ';'
}

func hexValue(x byte) int {
	switch {
	case x >= '0' && x <= '9':
		return int(x - '0')
	case x|0x20 >= 'a' && x|0x20 <= 'f':
		return int(x|0x20-'a') + 10
	}
	return -1
}

// trailers reads the trailer section and the end of the body.
func (r *BodyReader) trailers(b []byte) (done bool, err error) {
	s := &r.chunks
	if i := resume(b, s.from); i > 0 {
		s.from = i
	} else {
		s.trailer.Fields = s.trailer.Fields[:0]
		p := parser{b: b, h: &s.trailer, request: true, max: maxTrailers}
		n, err := p.fields(0)
		if err != nil {
			return false, err
		}
		if n >= 0 && n <= maxTrailer {
			s.trailer.keepTrailers()
			r.buf.Discard(n)
			r.open.Store(false)
			return false, io.EOF
		}
		s.from = len(b)
		if n < 0 {
			s.from = ^n
		}
	}
	if len(b) > maxTrailer {
		return false, errTrailer
	}
	return false, nil
}

// keepTrailers takes out what may not come behind a body: framing, routing, authentication, and how to read the content
// (RFC 9110 section 6.5.1). Fields of the connection were never in.
func (h *Head) keepTrailers() {
	out := h.Fields[:0]
	for _, f := range h.Fields {
		if !forbiddenTrailer(f.Name) {
			out = append(out, f)
		}
	}
	h.Fields = out
}

func forbiddenTrailer(name []byte) bool {
	if kindOf(name) != plain || stays(name) {
		return true
	}
	for _, s := range [...]string{
		"trailer", "cache-control", "max-forwards", "pragma", "range", "www-authenticate", "proxy-authenticate",
		"proxy-authorization", "age", "date", "expires", "location", "retry-after", "vary", "warning", "te",
	} {
		if EqualFold(name, s) {
			return true
		}
	}
	return false
}
