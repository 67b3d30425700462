package sniff

import "bytes"

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// maxToken is the longest method that is taken for one.
const maxToken = 32

// methods are taken for HTTP by their name alone. After any other token the target must begin with "/" or "*", since
// EHLO, USER and NICK look like methods too.
var methods = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "DELETE": true, "CONNECT": true, "OPTIONS": true,
	"TRACE": true, "PATCH": true,
}

// classify tells plain protocols apart by their first bytes. sure is false while more bytes could change the answer. b is
// not empty.
func classify(b []byte) (k Kind, sure bool) {
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		return HTTP2, n == len(preface)
	}
	if n := min(len(b), 4); string(b[:n]) == "SSH-"[:n] {
		return SSH, n == 4
	}
	// RFC 9112 section 2.2: an empty line before the request line is to be overlooked.
	switch {
	case b[0] != '\r':
	case len(b) == 1 || len(b) == 2 && b[1] == '\n':
		return Unknown, false
	case b[1] == '\n':
		b = b[2:]
	}
	return classifyToken(b)
}

func classifyToken(b []byte) (k Kind, sure bool) {
	n := 0
	for n < len(b) && n <= maxToken && token[b[n]] {
		n++
	}
	switch {
	case n == len(b):
		return Unknown, n > maxToken
	case n == 0 || n > maxToken:
		return Unknown, true
	case bytes.IndexByte([]byte(" \t\r\n"), b[n]) >= 0 && methods[string(b[:n])]:
		return HTTP1, true
	case b[n] != ' ':
		return Unknown, true
	case n+1 == len(b):
		return Unknown, false
	case b[n+1] == '/' || b[n+1] == '*':
		return HTTP1, true
	}
	return Unknown, true
}

// token marks the bytes of a method (RFC 9110 section 5.6.2).
var token = func() (t [256]bool) {
	for c := byte('0'); c <= 'z'; c++ {
		t[c] = c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a'
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = true
	}
	return t
}()
