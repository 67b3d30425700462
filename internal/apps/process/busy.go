package process

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const (
	maxSearch = 4 << 10 // bytes of a line that are looked at
	maxText   = 200     // bytes of it that are passed on
)

// taken are the words, in lower case, by which programs say that an address is taken, and where they come from. A line
// that also names another port is about that one.
var taken = []string{
	"address already in use",               // strerror(EADDRINUSE) of glibc, BSD and macOS: Go, Python, PHP, nginx, Apache, HAProxy, Redis, PostgreSQL; Ruby and Java in their own exceptions; .NET Kestrel
	"address in use",                       // the same of musl: whatever runs on Alpine
	"eaddrinuse",                           // Node (listen EADDRINUSE: ...), Bun, Ruby (Errno::EADDRINUSE), Erlang and Elixir (:eaddrinuse)
	"addrinuse",                            // Rust and Deno (AddrInUse)
	"os error 98",                          // Rust on Linux in other languages, and os error 48 on macOS
	"[errno 98]",                           // Python on Linux in other languages
	"[errno 48]",                           // and on macOS
	"that port is already in use",          // Django
	"connection in use: (",                 // gunicorn
	"something is already running on port", // Create React App
	"already have another mysqld",          // MySQL
}

// takenPort are wordings with the port between the words: Vite and Angular ("Port 5173 is already in use"), Flask ("Port
// 5000 is in use by another program"), Spring Boot ("Port 8080 was already in use"), Bun ("Is port 3000 in use?").
var takenPort = regexp.MustCompile(`\bport:? [0-9]{1,5}(?: (?:is|was))?(?: (?:already|currently))? (?:in use|taken|occupied|being used|allocated)\b`)

// hints are parts of which every such line has one, so that all others are let by at little cost.
var hints = [][]byte{
	[]byte("in use"), []byte("INUSE"), []byte("InUse"), []byte("inuse"), []byte("rror 98"), []byte("rrno 98"), []byte("rrno 48"),
	[]byte("already running"), []byte("another mysqld"), []byte("port "),
}

// named are the ports that a line names, behind a host or the word.
var named = regexp.MustCompile(`(?:[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\]|localhost|\*|::|\s)['"]?(?::|',\s?|",\s?)([0-9]{1,5})\b|\bport(?::|=|\s)\s?([0-9]{1,5})\b`)

// portTaken finds in a line of output that the port is taken.
func portTaken(line []byte, port uint16) (string, bool) {
	if port == 0 || !slices.ContainsFunc(hints, func(h []byte) bool { return bytes.Contains(line, h) }) {
		return "", false
	}
	line = line[:min(len(line), maxSearch)]
	low := strings.ToLower(string(line))
	if !slices.ContainsFunc(taken, func(t string) bool { return strings.Contains(low, t) }) && !takenPort.MatchString(low) {
		return "", false
	}
	all := named.FindAllStringSubmatch(low, -1)
	ours := len(all) == 0
	for _, m := range all {
		ours = ours || m[1]+m[2] == strconv.Itoa(int(port))
	}
	return printable(line[:min(len(line), maxText)]), ours
}

// printable is a text without what would disturb a line of ours.
func printable(text []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(text)))
}
