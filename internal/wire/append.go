package wire

import "strconv"

// AppendRequest appends the head in HTTP/1.1. n is the body length: -1 chunked, 0 none (Content-Length: 0 only for
// methods that announce one). h.Upgrade, if set, is sent with Connection: upgrade. Fields that belong to a connection
// are left out of h.Fields wherever they come from, and a control character becomes a space: what is sent has one reading.
func AppendRequest(dst []byte, h *Head, n int64) []byte {
	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	dst = appendTarget(dst, h.Target)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = appendText(dst, h.Authority)
	dst = append(dst, "\r\n"...)
	dst = appendFields(dst, h.Fields, true)
	switch {
	case n < 0:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	case n > 0 || announcesEmpty(h.Method):
		dst = appendLength(dst, n)
	}
	if h.Expect && n != 0 {
		dst = append(dst, "Expect: 100-continue\r\n"...)
	}
	if h.Trailers {
		dst = append(dst, "TE: trailers\r\n"...)
	}
	switch {
	case len(h.Upgrade) > 0 && h.Trailers:
		dst = append(dst, "Connection: upgrade, TE\r\n"...)
	case len(h.Upgrade) > 0:
		dst = append(dst, "Connection: upgrade\r\n"...)
	case h.Trailers:
		dst = append(dst, "Connection: TE\r\n"...)
	}
	if len(h.Upgrade) > 0 {
		dst = append(dst, "Upgrade: "...)
		dst = appendText(dst, h.Upgrade)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// announcesEmpty reports whether a request of that method without a body says so (RFC 9110 section 8.6).
func announcesEmpty(method []byte) bool {
	switch string(method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// AppendResponse appends the head in HTTP/1.1, with framing and connection fields as said: n is announced as
// Content-Length with ByLength (and with NoBody where n >= 0 and the status allows it); closing adds Connection: close.
// h.Upgrade is sent with 101 and 426. The rest is as with AppendRequest.
func AppendResponse(dst []byte, h *Head, f Framing, n int64, closing bool) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(h.Status), 10)
	dst = append(dst, ' ')
	if len(h.Reason) > 0 {
		dst = appendText(dst, h.Reason)
	} else {
		dst = append(dst, StatusText(h.Status)...)
	}
	dst = append(dst, "\r\n"...)
	dst = appendFields(dst, h.Fields, false)
	switch {
	case f == ByChunks:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	case f == ByLength, f == NoBody && n >= 0 && h.Status >= 200 && h.Status != 204:
		dst = appendLength(dst, n)
	}
	switch {
	case len(h.Upgrade) > 0 && (h.Status == 101 || h.Status == 426):
		dst = append(dst, "Connection: upgrade"...)
		if closing {
			dst = append(dst, ", close"...)
		}
		dst = append(dst, "\r\nUpgrade: "...)
		dst = appendText(dst, h.Upgrade)
		dst = append(dst, "\r\n"...)
	case closing:
		dst = append(dst, "Connection: close\r\n"...)
	}
	return append(dst, "\r\n"...)
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, "\r\n"...)
}

// appendFields leaves out what the named members of a Head say, and what has no valid name.
func appendFields(dst []byte, fields []Field, request bool) []byte {
	for i := range fields {
		f := &fields[i]
		if k := kindOf(f.Name); k != plain && (request || k != fieldHost && k != fieldExpect) || !isToken(f.Name) {
			continue
		}
		dst = append(dst, f.Name...)
		dst = append(dst, ": "...)
		dst = appendText(dst, f.Value)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// appendText appends s with its control characters turned into spaces.
func appendText(dst, s []byte) []byte {
	start := len(dst)
	dst = append(dst, s...)
	for i := control(dst, start); i < len(dst); i = control(dst, i+1) {
		dst[i] = ' '
	}
	return dst
}

// appendTarget appends a request target with what would end it percent-encoded. An empty one is "/".
func appendTarget(dst, target []byte) []byte {
	if len(target) == 0 {
		return append(dst, '/')
	}
	clean := 0
	for clean < len(target) && target[clean] > ' ' && target[clean] != 0x7f {
		clean++
	}
	dst = append(dst, target[:clean]...)
	for _, x := range target[clean:] {
		if x <= ' ' || x == 0x7f {
			dst = append(dst, '%', "0123456789ABCDEF"[x>>4], "0123456789ABCDEF"[x&15])
			continue
		}
		dst = append(dst, x)
	}
	return dst
}
