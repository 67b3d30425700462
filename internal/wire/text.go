package wire

import (
	"encoding/binary"
	"math/bits"
)

// chars are classes of bytes.
type chars [256]bool

func charsOf(s string) (t chars) {
	for i := range len(s) {
		t[s[i]] = true
	}
	return t
}

const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// The classes of RFC 9110 section 5.6.2 and of a host as we take it: names, IPv4 and, in brackets, IPv6.
var (
	tokenChars = charsOf(alnum + "!#$%&'*+-.^_`|~")
	hostChars  = charsOf(alnum + "-._~")
	v6Chars    = charsOf("0123456789abcdefABCDEF:.")
)

func isToken(b []byte) bool {
	for _, x := range b {
		if !tokenChars[x] {
			return false
		}
	}
	return len(b) > 0
}

const (
	each  = 0x0101010101010101
	highs = 0x80 * each
)

// control returns the place of the first control byte (CTL of RFC 5234, tab aside) in b from i on, or len(b).
func control(b []byte, i int) int {
	for {
		for ; i+8 <= len(b); i += 8 {
			x := binary.LittleEndian.Uint64(b[i:])
			del := x ^ 0x7f*each
			// The lowest marked byte is exact; those above it may be marked by its borrow.
			if m := ((x-0x20*each)&^x | (del-each)&^del) & highs; m != 0 {
				i += bits.TrailingZeros64(m) >> 3
				break
			}
		}
		for ; i < len(b); i++ {
			if x := b[i]; x < 0x20 && x != '\t' || x == 0x7f {
				return i
			} else if x == '\t' {
				i++
				break
			}
		}
		if i >= len(b) {
			return len(b)
		}
	}
}

// line finds the end of the line that starts at i, where its CRLF stands. It is negative when the line is not complete:
// ^end is then where to look on.
func line(b []byte, i int) (end int, err error) {
	e := control(b, i)
	switch {
	case e == len(b):
		return ^e, nil
	case b[e] == '\n':
		return 0, errBareLF
	case b[e] != '\r':
		return 0, errControl
	case e+1 == len(b):
		return ^e, nil
	case b[e+1] != '\n':
		return 0, errBareCR
	}
	return e, nil
}

// trim takes spaces and tabs off both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// nextOption cuts the first element off a comma-separated list (RFC 9110 section 5.6.1).
func nextOption(list []byte) (option, rest []byte) {
	for i, x := range list {
		if x == ',' {
			return trim(list[:i]), list[i+1:]
		}
	}
	return trim(list), nil
}

func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}

// decimal reads 1*DIGIT, at most 18 of them.
func decimal(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, x := range b {
		if x < '0' || x > '9' {
			return 0, false
		}
		n = n*10 + int64(x-'0')
	}
	return n, true
}
