// Package preview knows what is peculiar to previews: whom they answer, which of them a page belongs to whose links know
// nothing of the path it is shown under, and the pages people see of an app that does not serve.
//
// It promises that a preview is not guessed: a request belongs to one because its page says so or because the browser has
// opened no other, and in doubt it belongs to none. What an app has said is text in these pages and never markup. It reads
// no connection and keeps nothing.
package preview

import "bytes"

// Cookie is the name of the cookie in which a browser keeps which previews it has opened on a host: their names, with dots
// between them.
const Cookie = "quaymaster-previews"

// maxOpen bounds how many names the cookie holds. With two, none is alone.
const maxOpen = 8

// Local reports whether a host, in lower case and without port, dot and brackets, is one under which no page from elsewhere can be
// shown: an address, localhost or domain, or a name below those two. domain has no names of others below it.
func Local(host []byte, domain string) bool {
	return below(host, "localhost") || below(host, domain) || isIP(host)
}

func below(host []byte, domain string) bool {
	n := len(host) - len(domain)
	return domain != "" && n >= 0 && string(host[n:]) == domain && (n == 0 || host[n-1] == '.')
}

// isIP reports whether a host is no name: it stood in brackets, or it is digits and dots, which browsers take for nothing
// but an address.
func isIP(host []byte) bool {
	if bytes.IndexByte(host, ':') >= 0 {
		return true
	}
	for _, c := range host {
		if c != '.' && (c < '0' || c > '9') {
			return false
		}
	}
	return len(host) > 0
}

// From reports whether a Referer is a page below path on the host that is asked.
func From(referer, host []byte, path string) bool {
	return Below(OnHost(referer, host), path)
}

// OnHost is what follows the host in a Referer of the host that is asked; nil if it is of another.
func OnHost(referer, host []byte) []byte {
	if rest, ok := onHost(referer, host); ok {
		return rest
	}
	return nil
}

// Below reports whether a page of the host is path or below it.
func Below(page []byte, path string) bool {
	if len(page) < len(path) || string(page[:len(path)]) != path {
		return false
	}
	return len(page) == len(path) || page[len(path)] == '/' || page[len(path)] == '?'
}

// Same reports whether a URL or an origin is of the host.
func Same(url, host []byte) bool {
	rest, ok := onHost(url, host)
	return ok && (len(rest) == 0 || rest[0] == '/')
}

// onHost is what follows the host in a URL of it.
func onHost(url, host []byte) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(url, []byte("http://"))
	if !ok {
		if rest, ok = bytes.CutPrefix(url, []byte("https://")); !ok {
			return nil, false
		}
	}
	if len(host) == 0 || len(rest) < len(host) || !bytes.EqualFold(rest[:len(host)], host) {
		return nil, false
	}
	rest = rest[len(host):]
	return rest, len(rest) == 0 || rest[0] == '/' || rest[0] == '?'
}

// Alone reports whether the Cookie field names app, and no other name that known knows.
func Alone(cookie []byte, app string, known func(app []byte) bool) bool {
	found := false
	for list := open(cookie); len(list) > 0; {
		var name []byte
		name, list, _ = bytes.Cut(list, dot)
		switch {
		case string(name) == app:
			found = true
		case known(name):
			return false
		}
	}
	return found
}

var dot, semicolon, equals = []byte{'.'}, []byte{';'}, []byte{'='}

// open is the value of our cookie in a Cookie field, nil if it is not there.
func open(cookie []byte) []byte {
	for len(cookie) > 0 {
		var pair []byte
		pair, cookie, _ = bytes.Cut(cookie, semicolon)
		name, value, _ := bytes.Cut(bytes.Trim(pair, " \t"), equals)
		if string(name) == Cookie {
			return value
		}
	}
	return nil
}

// Opened appends a Set-Cookie value that adds app to the names of the Cookie field. It reports false where app is among them
// already.
func Opened(dst, cookie []byte, app string) ([]byte, bool) {
	start, n := len(dst), 1
	dst = append(append(dst, Cookie...), '=')
	dst = append(dst, app...)
	for list := open(cookie); len(list) > 0 && n < maxOpen; {
		var name []byte
		name, list, _ = bytes.Cut(list, dot)
		if string(name) == app {
			return dst[:start], false
		}
		if label(name) {
			dst = append(append(dst, '.'), name...)
			n++
		}
	}
	return append(dst, "; Path=/; HttpOnly; SameSite=Strict"...), true
}

// label reports whether a name could be an app's.
func label(name []byte) bool {
	if len(name) == 0 || len(name) > 63 {
		return false
	}
	for _, c := range name {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
