package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A spool is a target that keeps every byte it gets, connection by connection.
type spool struct {
	addr string

	mu    sync.Mutex // guards the bytes of conns
	conns []*bytes.Buffer
}

// spoolTarget answers the nth request (from 1) with what the func says, "" ends the connection instead. A request it
// cannot read ends the connection too.
func spoolTarget(t testing.TB, answer func(n int, r *http.Request, body string) string) *spool {
	t.Helper()
	s := &spool{}
	var mu sync.Mutex
	n := 0
	s.addr = tcpTarget(t, func(c net.Conn) {
		r := bufio.NewReader(io.TeeReader(c, s.next()))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			mu.Lock()
			n++
			k := n
			mu.Unlock()
			text := answer(k, req, string(body))
			if _, err := io.WriteString(c, text); err != nil || text == "" || strings.Contains(text, "Connection: close") {
				return
			}
		}
	})
	return s
}

func okay(int, *http.Request, string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" }

// next is where the bytes of one more connection go.
func (s *spool) next() io.Writer {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &bytes.Buffer{}
	s.conns = append(s.conns, b)
	return spoolWriter{s, b}
}

type spoolWriter struct {
	s *spool
	b *bytes.Buffer
}

func (w spoolWriter) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.b.Write(p)
}

// all is what came, connection by connection.
func (s *spool) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, b := range s.conns {
		out = append(out, b.String())
	}
	return out
}

// forget drops what came so far on connections that may still live.
func (s *spool) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.conns {
		b.Reset()
	}
}

// text is all that came, on whatever connection.
func (s *spool) text() string { return strings.Join(s.all(), "") }

// A letter is one HTTP/1.1 message, read by the letter.
type letter struct {
	start    string
	fields   [][2]string
	body     string
	trailers [][2]string
}

func (l *letter) values(name string) []string {
	var out []string
	for _, f := range l.fields {
		if strings.EqualFold(f[0], name) {
			out = append(out, f[1])
		}
	}
	return out
}

func (l *letter) one(name string) string {
	if v := l.values(name); len(v) == 1 {
		return v[0]
	}
	return ""
}

const tokens = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// readFields reads field lines to the empty one. What RFC 9112 lets a lenient reader take in two ways is an error.
func readFields(raw string) (fields [][2]string, rest string, err error) {
	for {
		l, after, ok := strings.Cut(raw, "\r\n")
		if !ok {
			return nil, "", io.ErrUnexpectedEOF
		}
		raw = after
		if l == "" {
			return fields, raw, nil
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || strings.Trim(name, tokens) != "" {
			return nil, "", fmt.Errorf("field line %q", l)
		}
		for _, c := range []byte(value) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return nil, "", fmt.Errorf("control byte in %q", l)
			}
		}
		fields = append(fields, [2]string{name, strings.Trim(value, " \t")})
	}
}

// readLetter reads one message from the start of raw: a request when to is "", else the answer to a request of that
// method. The body ends by exactly one rule.
func readLetter(raw, to string) (*letter, string, error) {
	start, rest, ok := strings.Cut(raw, "\r\n")
	if !ok || strings.ContainsAny(start, "\r\n\x00\t") {
		return nil, raw, fmt.Errorf("start line %q", start)
	}
	l := &letter{start: start}
	var err error
	if l.fields, rest, err = readFields(rest); err != nil {
		return nil, raw, err
	}
	lengths, codings := l.values("Content-Length"), l.values("Transfer-Encoding")
	words := strings.Split(start, " ")
	if to == "" {
		if len(words) != 3 || words[2] != "HTTP/1.1" || len(l.values("Host")) != 1 {
			return nil, raw, fmt.Errorf("request line %q, hosts %q", start, l.values("Host"))
		}
	} else if len(words) < 2 || words[0] != "HTTP/1.1" {
		return nil, raw, fmt.Errorf("status line %q", start)
	}
	if len(lengths)+len(codings) > 1 {
		return nil, raw, fmt.Errorf("framed %d times", len(lengths)+len(codings))
	}
	if to != "" && (to == "HEAD" || words[1][0] == '1' || words[1] == "204" || words[1] == "304") {
		if len(codings) > 0 || len(lengths) > 0 && (words[1][0] == '1' || words[1] == "204") {
			return nil, raw, errors.New("a body is announced where none can be")
		}
		return l, rest, nil
	}
	switch {
	case len(codings) == 1:
		if codings[0] != "chunked" {
			return nil, raw, fmt.Errorf("coding %q", codings[0])
		}
		l.body, l.trailers, rest, err = readChunks(rest)
	case len(lengths) == 1:
		n, perr := strconv.ParseUint(lengths[0], 10, 63)
		if perr != nil || strings.Trim(lengths[0], "0123456789") != "" {
			return nil, raw, fmt.Errorf("length %q", lengths[0])
		}
		if uint64(len(rest)) < n {
			return nil, raw, io.ErrUnexpectedEOF
		}
		l.body, rest = rest[:n], rest[n:]
	case to != "":
		l.body, rest = rest, "" // until the end of the connection
	}
	return l, rest, err
}

func readChunks(raw string) (body string, trailers [][2]string, rest string, err error) {
	for {
		size, after, ok := strings.Cut(raw, "\r\n")
		if !ok {
			return "", nil, "", io.ErrUnexpectedEOF
		}
		n, err := strconv.ParseUint(size, 16, 63)
		if err != nil || strings.Trim(size, "0123456789abcdefABCDEF") != "" {
			return "", nil, "", fmt.Errorf("chunk size %q", size)
		}
		if n == 0 {
			trailers, rest, err = readFields(after)
			return body, trailers, rest, err
		}
		if uint64(len(after)) < n+2 {
			return "", nil, "", io.ErrUnexpectedEOF
		}
		if after[n:n+2] != "\r\n" {
			return "", nil, "", fmt.Errorf("chunk ends in %q", after[n:n+2])
		}
		body, raw = body+after[:n], after[n+2:]
	}
}

// letters reads all of raw.
func letters(t testing.TB, raw, to string) []*letter {
	t.Helper()
	var out []*letter
	for raw != "" {
		l, rest, err := readLetter(raw, to)
		if err != nil {
			t.Fatalf("not unambiguous: %v in %.300q", err, raw)
		}
		out, raw = append(out, l), rest
	}
	return out
}

// send writes text, in a goroutine because the answer may come before all of it was taken, and reads to the end.
func send(t testing.TB, port int, text string) string {
	t.Helper()
	c := dial(t, port)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.WriteString(c, text) })
	b := untilEnd(t, c, 20*time.Second)
	_ = c.Close()
	wg.Wait()
	return string(b)
}

// malformed are heads that have two readings, or none.
func malformed() map[string]struct {
	text   string
	status int
} {
	type m = struct {
		text   string
		status int
	}
	post := func(fields, body string) string {
		return "POST /x HTTP/1.1\r\nHost: a.test\r\n" + fields + "\r\n" + body
	}
	get := func(fields string) string { return "GET /x HTTP/1.1\r\nHost: a.test\r\n" + fields + "\r\n" }
	return map[string]m{
		"CL and TE":                  {post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
		"TE and CL":                  {post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400},
		"two CLs":                    {post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), 400},
		"the same CL twice":          {post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), 400},
		"a list of CLs":              {post("Content-Length: 5, 6\r\n", "hello!"), 400},
		"a list of one CL":           {post("Content-Length: 5, 5\r\n", "hello"), 400},
		"CL +5":                      {post("Content-Length: +5\r\n", "hello"), 400},
		"CL -1":                      {post("Content-Length: -1\r\n", ""), 400},
		"CL 0x5":                     {post("Content-Length: 0x5\r\n", "hello"), 400},
		"CL with a space":            {post("Content-Length: 5 5\r\n", "hello"), 400},
		"CL empty":                   {post("Content-Length:\r\n", ""), 400},
		"CL overflow":                {post("Content-Length: 18446744073709551621\r\n", "hello"), 400},
		"TE on 1.0":                  {"POST /x HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"TE gzip":                    {post("Transfer-Encoding: gzip\r\n", ""), 501},
		"TE gzip, chunked":           {post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 501},
		"TE chunked, identity":       {post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 501},
		"TE xchunked":                {post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 501},
		"TE quoted":                  {post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 501},
		"TE with a vertical tab":     {post("Transfer-Encoding: \vchunked\r\n", "0\r\n\r\n"), 400},
		"TE twice":                   {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"), 400},
		"TE behind a fold":           {post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), 501},
		"obs-fold":                   {get("A: b\r\n c\r\n"), 400},
		"obs-fold by tab":            {get("A: b\r\n\tc\r\n"), 400},
		"fold as the first field":    {"GET /x HTTP/1.1\r\n Host: a.test\r\n\r\n", 400},
		"space before the colon":     {get("Content-Length : 5\r\n"), 400},
		"tab before the colon":       {get("Content-Length\t: 5\r\n"), 400},
		"name without a colon":       {get("Content-Length\r\n"), 400},
		"empty name":                 {get(": x\r\n"), 400},
		"name with a parenthesis":    {get("A(b): x\r\n"), 400},
		"bare LF":                    {"GET /x HTTP/1.1\nHost: a.test\n\n", 400},
		"bare LF in the middle":      {get("A: b\nTransfer-Encoding: chunked\r\n"), 400},
		"bare LF at the end":         {"GET /x HTTP/1.1\r\nHost: a.test\r\n\n", 400},
		"bare CR":                    {get("A: b\rTransfer-Encoding: chunked\r\n"), 400},
		"bare CR in the target":      {"GET /x\ry HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"NUL in a value":             {get("A: b\x00c\r\n"), 400},
		"NUL in a name":              {get("A\x00: c\r\n"), 400},
		"NUL in the target":          {"GET /x\x00 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"NUL in Host":                {"GET /x HTTP/1.1\r\nHost: a.test\x00\r\n\r\n", 400},
		"no Host":                    {"GET /x HTTP/1.1\r\n\r\n", 400},
		"two Hosts":                  {"GET /x HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400},
		"the same Host twice":        {get("Host: a.test\r\n"), 400},
		"empty Host":                 {"GET /x HTTP/1.1\r\nHost:\r\n\r\n", 400},
		"Host with a user":           {"GET /x HTTP/1.1\r\nHost: u@a.test\r\n\r\n", 400},
		"Host with a path":           {"GET /x HTTP/1.1\r\nHost: a.test/b\r\n\r\n", 400},
		"list of Hosts":              {"GET /x HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n", 400},
		"absolute form, other Host":  {"GET http://b.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"absolute form, other port":  {"GET http://a.test:81/x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"absolute form, no Host":     {"GET http://a.test/x HTTP/1.1\r\n\r\n", 400},
		"100,000 fields":             {get(strings.Repeat("A: b\r\n", 100_000)), 431},
		"one field of 1 MB":          {get("A: " + strings.Repeat("b", 1<<20) + "\r\n"), 431},
		"HTTP/0.9":                   {"GET /x\r\n", 505},
		"HTTP/2.0":                   {"GET /x HTTP/2.0\r\nHost: a.test\r\n\r\n", 505},
		"HTTP/1.1 with a space":      {"GET /x  HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"words behind the version":   {"GET /x HTTP/1.1 x\r\nHost: a.test\r\n\r\n", 400},
		"lower-case method":          {"get /x HTTP/1.1\r\nHost: a.test\r\n\r\n", 501},
		"fragment in the target":     {"GET /x#y HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"target without a slash":     {"GET x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400},
		"Connection that is no list": {get("Connection: a b\r\n"), 400},
	}
}

func TestH01_MalformedHeadsReachNobody(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	q := start(t, "routes:\n"+route("a", p, "a.test", s.addr)+route("b", p, "b.test", s.addr))
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
	refused := 0
	for name, m := range malformed() {
		for _, behind := range []string{"", smuggled} {
			got := send(t, p, m.text+behind)
			answers := letters(t, got, "GET")
			if len(answers) != 1 || !strings.HasPrefix(answers[0].start, fmt.Sprintf("HTTP/1.1 %d ", m.status)) || answers[0].one("Connection") != "close" {
				t.Errorf("%s: answered %q, want one %d and the end of the connection", name, got, m.status)
			}
			refused++
		}
	}
	q.until("it is counted", func() bool { return q.rejected("bad_request") == float64(refused) })
	mustFetch(t, p, "a.test", "/fine", "ok")
	if came := letters(t, s.text(), ""); len(came) != 1 || came[0].start != "GET /fine HTTP/1.1" {
		t.Errorf("the target got %q", s.text())
	}
}

func TestH01_MalformedBodiesReachNobodyWhole(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	for name, body := range map[string]string{
		"extension of 1 MB":         "5;" + strings.Repeat("a", 1<<20) + "\r\nhello\r\n0\r\n\r\n",
		"1 MB of small extensions":  strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\nx\r\n", 1000) + "0\r\n\r\n",
		"size overflow":             "ffffffffffffffff0\r\nhello\r\n0\r\n\r\n",
		"size beyond 63 bits":       "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		"size with a sign":          "+5\r\nhello\r\n0\r\n\r\n",
		"size 0x5":                  "0x5\r\nhello\r\n0\r\n\r\n",
		"size empty":                "\r\nhello\r\n0\r\n\r\n",
		"size with a word":          "5 x\r\nhello\r\n0\r\n\r\n",
		"bare LF behind the size":   "5\nhello\r\n0\r\n\r\n",
		"bare LF behind the chunk":  "5\r\nhello\n0\r\n\r\n",
		"bare LF in an extension":   "5;a\nb\r\nhello\r\n0\r\n\r\n",
		"a chunk that goes on":      "5\r\nhello, world\r\n0\r\n\r\n",
		"malformed trailer":         "5\r\nhello\r\n0\r\nA : b\r\n\r\n",
		"trailer with a bare LF":    "5\r\nhello\r\n0\r\nA: b\n\r\n",
		"trailer section too large": "5\r\nhello\r\n0\r\n" + strings.Repeat("A: b\r\n", 10_000) + "\r\n",
	} {
		got := send(t, p, "POST /bad HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"+body+"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")
		answers := letters(t, got, "POST")
		if len(answers) != 1 || !strings.HasPrefix(answers[0].start, "HTTP/1.1 4") || answers[0].one("Connection") != "close" {
			t.Errorf("%s: answered %.300q, want one 400 or 431 and the end of the connection", name, got)
		}
	}
	// A whole request, then something that is none.
	got := send(t, p, "POST /good HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhellogarbage\r\n\r\n")
	if answers := letters(t, got, "POST"); len(answers) != 2 || answers[0].body != "ok" || !strings.HasPrefix(answers[1].start, "HTTP/1.1 400 ") {
		t.Errorf("trailing garbage: %q, want the answer, then 400", got)
	}
	for _, raw := range s.all() {
		for raw != "" {
			l, rest, err := readLetter(raw, "")
			if err != nil {
				break // a request that has not ended, which the target must not take for one
			}
			if l.start != "POST /good HTTP/1.1" || l.body != "hello" {
				t.Errorf("the target got a whole request %q", raw)
			}
			raw = rest
		}
	}
	if text := s.text(); strings.Contains(text, "smuggled") || strings.Contains(text, "garbage") || strings.Contains(text, "aaaa") {
		t.Errorf("the target got %.300q", text)
	}
}

func TestH01_WhatWeSendIsUnambiguous(t *testing.T) {
	t.Parallel()
	s := spoolTarget(t, okay)
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	const end = "Connection: close\r\n\r\n"
	for name, c := range map[string]struct{ text, start, body string }{
		"GET":                 {"GET /x HTTP/1.1\r\nHost: a.test\r\n" + end, "GET /x HTTP/1.1", ""},
		"HTTP/1.0":            {"POST /x HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello", "POST /x HTTP/1.1", "hello"},
		"no space in fields":  {"POST /x HTTP/1.1\r\nHost:a.test\r\nContent-Length:5\r\n" + end + "hello", "POST /x HTTP/1.1", "hello"},
		"spaces round values": {"POST /x HTTP/1.1\r\nHost: \t a.test \t\r\nContent-Length:  5 \t\r\nA: \t\r\n" + end + "hello", "POST /x HTTP/1.1", "hello"},
		"absolute form":       {"GET HTTP://A.test/x?y HTTP/1.1\r\nHost: a.TEST\r\n" + end, "GET /x?y HTTP/1.1", ""},
		"empty line before":   {"\r\nGET /x HTTP/1.1\r\nHost: a.test\r\n" + end, "GET /x HTTP/1.1", ""},
		"extensions":          {"POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: Chunked\r\n" + end + "5;a=\"b;c\"\r\nhello\r\n001 ;d\r\n!\r\n000\r\n\r\n", "POST /x HTTP/1.1", "hello!"},
		"GET with a body":     {"GET /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n" + end + "hello", "GET /x HTTP/1.1", "hello"},
		"aliases of framing":  {"POST /x HTTP/1.1\r\nHost: a.test\r\nContent_Length: 50\r\nTransfer_Encoding: chunked\r\nTransfer.Encoding: chunked\r\nContent-Length: 5\r\n" + end + "hello", "POST /x HTTP/1.1", "hello"},
		"framing by name":     {"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nConnection: content-length, host, transfer-encoding, close\r\n\r\nhello", "POST /x HTTP/1.1", "hello"},
		"framing in trailers": {"POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n" + end + "5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: b.test\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: 9.9.9.9\r\nA: b\r\n\r\n", "POST /x HTTP/1.1", "hello"},
		"bytes above 127":     {"GET /\xc3\xa4 HTTP/1.1\r\nHost: a.test\r\nA: \xff\xfe\r\n" + end, "GET /\xc3\xa4 HTTP/1.1", ""},
		"OPTIONS of all":      {"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n" + end, "OPTIONS * HTTP/1.1", ""},
	} {
		s.forget()
		answers := letters(t, send(t, p, c.text), "GET")
		if len(answers) != 1 || answers[0].body != "ok" {
			t.Errorf("%s: %+v", name, *answers[0])
			continue
		}
		came := letters(t, s.text(), "")
		if len(came) != 1 || came[0].start != c.start || came[0].body != c.body || !strings.EqualFold(came[0].one("Host"), "a.test") {
			t.Errorf("%s: the target got %q", name, s.text())
			continue
		}
		for _, f := range append(came[0].fields, came[0].trailers...) {
			if n := strings.NewReplacer("_", "-", ".", "-").Replace(f[0]); n != f[0] && strings.HasPrefix(n, "Content-Length") || strings.HasPrefix(n, "Transfer-Encoding") && n != f[0] {
				t.Errorf("%s: %s went on", name, f[0])
			}
		}
		if tr := came[0].trailers; len(tr) > 0 && (len(tr) != 1 || tr[0] != [2]string{"A", "b"}) {
			t.Errorf("%s: trailers %q", name, tr)
		}
	}
}

func TestH01_AnswersOfTargetsAreMadeUnambiguousOrRefused(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	answers := map[string]struct {
		text string
		want string // the client's answer; "" = 502
	}{
		"CL and TE":            {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, ""},
		"two CLs":              {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello", ""},
		"CL +5":                {"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", ""},
		"TE gzip":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", ""},
		"bare LF":              {"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", ""},
		"bare LF in a value":   {"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 9\r\nContent-Length: 5\r\n\r\nhello", ""},
		"obs-fold":             {"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 5\r\n\r\nhello", ""},
		"NUL":                  {"HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 5\r\n\r\nhello", ""},
		"space before a colon": {"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", ""},
		"no status":            {"HTTP/1.1 OK\r\nContent-Length: 5\r\n\r\nhello", ""},
		"status 42":            {"HTTP/1.1 042 X\r\nContent-Length: 5\r\n\r\nhello", ""},
		"not HTTP":             {"SSH-2.0-OpenSSH\r\n\r\n", ""},
		"101 unasked":          {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + evil, ""},
		"a head of 1 MB":       {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", 1<<20) + "\r\nContent-Length: 5\r\n\r\nhello", ""},
		"more than announced":  {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + evil, "hello"},
		"204 with a body":      {"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello" + evil, "no content"},
		"chunks, then more":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n" + evil, "hello"},
	}
	s := spoolTarget(t, func(_ int, r *http.Request, _ string) string {
		if a, ok := answers[r.Header.Get("Case")]; ok {
			return a.text
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
	})
	p := freePort(t)
	start(t, "routes:\n"+route("a", p, "a.test", s.addr))
	for name, a := range answers {
		c := dial(t, p)
		r := bufio.NewReader(c)
		res, body := say(t, c, r, "GET /x HTTP/1.1\r\nHost: a.test\r\nCase: "+name+"\r\n\r\n")
		switch {
		case a.want == "" && (res.StatusCode != 502 || strings.Contains(body, "evil")):
			t.Errorf("%s: %d %q, want 502", name, res.StatusCode, body)
		case a.want == "no content" && (res.StatusCode != 204 || body != ""):
			t.Errorf("%s: %d %q", name, res.StatusCode, body)
		case a.want == "hello" && (res.StatusCode != 200 || body != "hello"):
			t.Errorf("%s: %d %q", name, res.StatusCode, body)
		}
		if _, body := say(t, c, r, "GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n"); body != "next" {
			t.Errorf("%s: the next request got %q", name, body)
		}
		_ = c.Close()
	}
	// What goes wrong behind the head must not look like a whole answer.
	for name, text := range map[string]string{
		"chunk size overflow": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nffffffffffffffff0\r\nx\r\n0\r\n\r\n",
		"bare LF in chunks":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
		"too short":           "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nhello",
		"chunks without end":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n",
	} {
		s := spoolTarget(t, func(int, *http.Request, string) string { return text })
		p := freePort(t)
		start(t, "routes:\n"+route("a", p, "a.test", s.addr))
		got := send(t, p, "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")
		l, rest, err := readLetter(got, "GET")
		if err == nil && !(strings.HasPrefix(l.start, "HTTP/1.1 502 ") && rest == "") {
			t.Errorf("%s: the client got a whole answer: %q", name, got)
		}
	}
}
