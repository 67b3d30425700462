package route

import (
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// FuzzHost holds a pattern and a host against the slow matcher, and the normal form against itself.
func FuzzHost(f *testing.F) {
	for _, s := range [][2]string{
		{"a.x", "A.X.:80"},
		{"*.x", "a.b.x"},
		{"**.x", "a.b.x"},
		{"::1", "[::1]:80"},
		{"*.x", ".x"},
		{"a", "a:"},
		{"a.x", "a.x:99999"},
		{"[::1]", "[::1"},
		{"*", "x"},
		{"xn--bcher-kva.example", "XN--BCHER-KVA.example"},
		{"a_b.x", "a_b.x"},
		{"**.a.x", "a.x"},
		{"1.2.3.4", "1.2.3.4:1"},
		{"a..b", "a..b"},
		{"a", "a.."},
		{"a.x", "a.x\x00"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, host string) {
		var buf [maxHost]byte
		n := normalise(buf[:0], host)
		if n != nil && !strings.Contains(string(n), ":") {
			var again [maxHost]byte
			if m := normalise(again[:0], n); string(m) != string(n) {
				t.Fatalf("%q -> %q -> %q", host, n, m)
			}
		}
		if n != nil && (len(n) == 0 || len(n) > maxHost || strings.ToLower(string(n)) != string(n)) {
			t.Fatalf("%q -> %q", host, n)
		}
		h, err := parseHost(pattern)
		if err != nil {
			return
		}
		table, err := Compile(t.Context(), planOf(route("r", hosts(pattern))), Claims{})
		if err != nil {
			t.Fatal(err)
		}
		rule, _ := table.Port(plan.Addr{Port: 80}, loopback).Request(&Request{Host: []byte(host), Target: []byte("/")})
		_, want := slowHost(h.String(), string(n))
		if (rule != nil) != (want && n != nil) {
			t.Fatalf("%q takes %q (%q): %t", pattern, host, n, rule != nil)
		}
	})
}

// FuzzPath holds a pattern and a path against the slow matcher under some well-known readings.
func FuzzPath(f *testing.F) {
	for _, s := range [][2]string{
		{"/v1/*", "/v1"},
		{"/v1/*", "/v1/../v2"},
		{"/:id", "/a%2fb"},
		{"/a", "//a"},
		{"/a/", "/a/;x"},
		{"/a", "/%2561"},
		{"/a/*", "/a\\..\\b"},
		{"/a", "/a%00b"},
		{"/a", "/a#b"},
		{"/v1", "/v1\x00"},
		{"/*", "/%zz"},
		{"/a/:b/c", "/a/%/c"},
		{"/", "/."},
		{"/a", "/%%36%31"},
		{"/x", "/x;a%2f../x"},
		{"/a", "/..;/a"},
		{"/a/b", "/a/;/b"},
		{"/a/*", "/a/%252e%252e/b"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, target string) {
		table, err := Compile(t.Context(), planOf(route("r", paths(pattern))), Claims{})
		if err != nil {
			return
		}
		rule, verdict := table.Port(plan.Addr{Port: 80}, loopback).Request(&Request{Host: []byte("h"), Target: []byte(target)})
		if (rule != nil) != (verdict == Found) {
			t.Fatal(verdict)
		}
		if verdict == Ambiguous || !strings.HasPrefix(target, "/") {
			return
		}
		raw, _, _ := strings.Cut(target, "?")
		for _, reading := range slowReadings(raw) {
			if !strings.HasPrefix(reading, "/") {
				continue
			}
			if _, want := slowPath(pattern, reading); want != (rule != nil) {
				t.Fatalf("%q takes %q: %t, but read as %q it is %t", pattern, target, rule != nil, reading, want)
			}
		}
	})
}
