package form

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/config/strict"
)

// TestLeaves has for each kind of text what it is read as, and texts that it refuses.
func TestLeaves(t *testing.T) {
	for _, c := range []struct {
		v    strict.TextReader
		good map[string]string
		bad  string // separated by |
	}{
		{new(Duration), map[string]string{"10s": "10s", "5m": "5m", "90": "1m30s", "0.5": "500ms", "0": "0", "1h30m": "1h30m", "1500ms": "1.5s"}, "|x|-1|10 s|NaN|Inf|1e300|1d"},
		{new(Size), map[string]string{"64KiB": "64KiB", "5": "5", "10MB": "10000000", "1.5 MiB": "1536KiB", "2B": "2", "0": "0"}, "|x|-1|1KiBs|0x10|1e3|99999999TiB|NaN"},
		{new(Percent), map[string]string{"20%": "20%", "0%": "0%", "12.5%": "12.5%"}, "20|101%|-1%|x%|NaN%"},
		{new(Name), map[string]string{"web": "web", "56": "56", "a-b": "a-b"}, "|Web|a_b|-a|a-|a.b|" + strings.Repeat("a", 64)},
		{new(Domain), map[string]string{"A.b.": "a.b", "*.x.y": "*.x.y", "**.x": "**.x", "[::1]": "::1", "::ffff:1.2.3.4": "1.2.3.4", "localhost": "localhost"}, "|*|**|a..b|a.*|*.*.x|a:80|a/b|http://a|ä.de|a b"},
		{new(AllowName), map[string]string{"A.B:443": "a.b", "*.x": "*.x", "*": "*", "[2001:DB8::1]:443": "2001:db8::1", "1.2.3.4:1": "1.2.3.4"}, "|**.x|a b|*x"},
		{new(Method), map[string]string{"GET": "GET", "M-SEARCH": "M-SEARCH"}, "|get|G T|" + strings.Repeat("A", 33)},
		{new(Mode), map[string]string{"0600": "0600", "660": "660"}, "|6|0666|0o600|rw|0999"},
		{new(PathPattern), map[string]string{"/": "/", "/a/*": "/a/*", "/u/:id/x": "/u/:id/x", "/*": "/*", "/a/": "/a/"}, "a|/a*|/*/a|/:|/:id/:id|//a|/a/../b|/a?b|/a#b|/./a"},
		{new(HostPort), map[string]string{"1.1.1.1:53": "1.1.1.1:53", "dns:53": "dns:53", "": ""}, "dns|dns:x|:53|a b:1"},
		{new(ListenAddress), map[string]string{":9000": ":9000", "127.0.0.1:1": "127.0.0.1:1", "[::1]:1": "[::1]:1"}, "9000|host:1|:1-2|unix:/x|fd:x"},
		{new(StatusRange), map[string]string{"200": "200-200", "200-399": "200-399"}, "|x|99|200-100|600|200-"},
		{new(RedirectTo), map[string]string{"https": "https", "/x": "/x", "{path}": "{path}", "https://{host}:8443{path}?{query}": "https://{host}:8443{path}?{query}"}, "|x|ftp://a|{client_ip}|http:// a|javascript:x"},
		{new(RateKey), map[string]string{"client_ip": "client_ip", "route": "route", "header:X-Key": "header:X-Key"}, "|ip|header:|header:a b"},
		{new(HostName), map[string]string{"db": "db", "[::1]": "::1", "a.b.": "a.b."}, "|a b|http://a"},
		{new(FileName), map[string]string{"index.html": "index.html"}, "|a/b|..|."},
	} {
		kind := reflect.TypeOf(c.v).Elem()
		read := func(s string) (string, error) {
			v := reflect.New(kind)
			err := v.Interface().(strict.TextReader).ReadText(s)
			if text := Default(v.Elem()); text != "" {
				return text, err
			}
			return fmt.Sprint(v.Elem().Interface()), err
		}
		for text, want := range c.good {
			if got, err := read(text); err != nil || got != want {
				t.Errorf("%s %q: %s, %v; want %s", kind.Name(), text, got, err, want)
			}
		}
		for text := range strings.SplitSeq(c.bad, "|") {
			got, err := read(text)
			if f := (*strict.Fault)(nil); !errors.As(err, &f) || f.Message == "" || f.Remedy == "" {
				t.Errorf("%s %q: %s, %v; want a fault with a remedy", kind.Name(), text, got, err)
			}
		}
	}
}

func TestPortTexts(t *testing.T) {
	for text, want := range map[string]string{
		"80": "true  80-80", "8000-8010": "true  8000-8010", ":80": "false  80-80", "127.0.0.1:80": "false 127.0.0.1 80-80", "[::1]:1-2": "false ::1 1-2",
		"unix:/x": "unix /x", "fd:https": "fd https",
	} {
		var p PortText
		err := p.ReadText(text)
		got := fmt.Sprintf("%v %v %d-%d", p.Bare, p.IP, p.Lo, p.Hi)
		got = strings.Replace(got, "invalid IP", "", 1)
		if p.Unix != "" {
			got = "unix " + p.Unix
		} else if p.FD != "" {
			got = "fd " + p.FD
		}
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65536", "99999999999999999999", "80-70", "80-", "-80", "x", "host:80", "*:80", "localhost:80", "::1:80", "80/udp", "unix:", "fd:", "fd:a b", "1.2.3:80"} {
		var p PortText
		if err := p.ReadText(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestSchemaKnowsEveryKey looks each key up in the JSON Schema.
func TestSchemaKnowsEveryKey(t *testing.T) {
	var s struct {
		Properties map[string]any
		Defs       map[string]struct {
			Properties map[string]map[string]any
			Additional any `json:"additionalProperties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	for _, c := range chapters(reflect.TypeFor[File](), "") {
		for f := range keys(c.t) {
			key := strict.Key(f)
			if c.path == "" {
				if s.Properties[key] == nil {
					t.Errorf("%s is missing", key)
				}
				continue
			}
			p := s.Defs[c.t.Name()].Properties[key]
			if p == nil || p["description"] == "" {
				t.Errorf("%s.%s is missing or says nothing", c.path, key)
			}
		}
		if c.path != "" && s.Defs[c.t.Name()].Additional != false {
			t.Errorf("%s takes any key", c.path)
		}
	}
	pool := s.Defs["Pool"].Properties
	if pool["max_idle"]["default"] != 128.0 || pool["idle"]["default"] != "1m" || pool["queue"]["maximum"] != 1000000.0 {
		t.Errorf("pool: %v", pool)
	}
	if got := fmt.Sprint(s.Defs["LoadBalance"].Properties["policy"]["enum"]); got != "[round_robin least_connections ip_hash random_two]" {
		t.Errorf("policies: %s", got)
	}
}

func TestSpansAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", time.Hour: "1h", 90 * time.Minute: "1h30m", 5 * time.Minute: "5m", 61 * time.Second: "1m1s"} {
		if got := span(Duration(d)); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}
