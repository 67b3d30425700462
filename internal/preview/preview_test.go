package preview

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestHostsUnderWhichNoPageFromElsewhereCanBe(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "fe80::1": true, "10.1.2.3": true, "2130706433": true, "localhost": true, "web.localhost": true, "a.b.localhost": true,
		"dev.example.com": true, "web.dev.example.com": true,
		"": false, "example.com": false, "xdev.example.com": false, "localhost.example.com": false, "notlocalhost": false, "127.0.0.1.example.com": false, "1.2.3.4.nip.io": false,
	} {
		if got := Local([]byte(host), "dev.example.com"); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	if Local([]byte("example.com"), "") {
		t.Error("no domain takes all")
	}
}

func TestAPageBelongsToThePreviewItsPathNames(t *testing.T) {
	for referer, want := range map[string]bool{
		"http://127.0.0.1:8080/app/preview/web/a?b": true, "https://127.0.0.1:8080/app/preview/web": true, "http://127.0.0.1:8080/app/preview/web?x": true,
		"http://127.0.0.1:8080/app/preview/web2/": false, "http://127.0.0.1:8080/": false, "http://127.0.0.1:8080/x/app/preview/web/": false,
		"http://127.0.0.1:80801/app/preview/web/": false, "http://127.0.0.1/app/preview/web/": false, "http://other:8080/app/preview/web/": false,
		"http://127.0.0.1:8080@evil/app/preview/web/": false, "ftp://127.0.0.1:8080/app/preview/web/": false, "": false, "/app/preview/web/": false,
	} {
		if got := From([]byte(referer), []byte("127.0.0.1:8080"), "/app/preview/web"); got != want {
			t.Errorf("%q: %v", referer, got)
		}
	}
	if !From([]byte("http://LocalHost:1/p/web/"), []byte("localhost:1"), "/p/web") || From([]byte("http:///p/web/"), nil, "/p/web") {
		t.Error("hosts are compared without case, and none is no host")
	}
	for origin, want := range map[string]bool{"http://localhost:1": true, "http://localhost:1/": true, "http://localhost:1.evil": false, "null": false, "": false, "http://evil": false} {
		if got := Same([]byte(origin), []byte("localhost:1")); got != want {
			t.Errorf("%q: %v", origin, got)
		}
	}
}

func TestOnePreviewIsAloneAndTwoAreNot(t *testing.T) {
	known := func(app []byte) bool { return string(app) == "web" || string(app) == "api" }
	for cookie, want := range map[string]bool{
		"quaymaster-previews=web": true, "a=b; quaymaster-previews=web; c=d": true, "quaymaster-previews=web.gone": true, "quaymaster-previews=web.web": true,
		"quaymaster-previews=web.api": false, "quaymaster-previews=api": false, "quaymaster-previews=": false, "": false, "x-quaymaster-previews=web": false, "a=quaymaster-previews=web": false,
	} {
		if got := Alone([]byte(cookie), "web", known); got != want {
			t.Errorf("%q: %v", cookie, got)
		}
	}
}

func TestABrowserKeepsWhatItHasOpened(t *testing.T) {
	const rest = "; Path=/; HttpOnly; SameSite=Strict"
	for cookie, want := range map[string]string{
		"": "quaymaster-previews=web" + rest, "sid=1": "quaymaster-previews=web" + rest, "quaymaster-previews=api": "quaymaster-previews=web.api" + rest,
		"quaymaster-previews=api.web": "", "quaymaster-previews=web": "",
		"quaymaster-previews=<x>.api": "quaymaster-previews=web.api" + rest, "quaymaster-previews=a b.api.": "quaymaster-previews=web.api" + rest,
		"quaymaster-previews=1.2.3.4.5.6.7.8.9": "quaymaster-previews=web.1.2.3.4.5.6.7" + rest,
	} {
		b, news := Opened([]byte("before "), []byte(cookie), "web")
		if got := strings.TrimPrefix(string(b), "before "); got != want || news != (want != "") {
			t.Errorf("%q: %q %v", cookie, got, news)
		}
	}
}

func TestLinesAreWhatATerminalWouldShow(t *testing.T) {
	for line, want := range map[string]string{
		"plain": "plain", "\x1b[1;31mred\x1b[0m": "red", "\x1b]0;title\x07text": "text", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link", "\x1b(Bx": "x", "\x1bcx": "x",
		"10%\r20%\r30%": "30%", "done\r": "done", "a\tb": "a b", "a\x00\x07\x08b": "ab", "a\u009b31mb": "ab", "\u202egnirts": "gnirts", "bad \xff": "bad \uFFFD", "\x1b": "", "\x1b[": "", "x\x1b]0;never ends": "x",
		"<b>&\"'": "<b>&\"'", strings.Repeat("é", 500): strings.Repeat("é", 399) + "…",
	} {
		if got := Clean(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestThePolicyNamesTheStyle(t *testing.T) {
	sum := sha256.Sum256([]byte(style))
	if want := base64.StdEncoding.EncodeToString(sum[:]); want != styleHash {
		t.Errorf("the style sheet has the hash %s", want)
	}
}

func TestPagesAreBounded(t *testing.T) {
	p := Page{Title: "x", Reason: strings.Repeat("r", 1e6)}
	for range 1000 {
		p.Lines = append(p.Lines, strings.Repeat("<", 1e4))
	}
	if n := len(p.HTML(nil)); n > 50_000 {
		t.Errorf("%d bytes", n)
	}
	if n := len(p.Plain(nil)); n > 20_000 {
		t.Errorf("%d bytes as text", n)
	}
}

// FuzzPage lets an app say anything: no markup and nothing that a terminal acts on comes of it.
func FuzzPage(f *testing.F) {
	for _, s := range []string{"<script>alert(1)</script>", "\x1b[2J\x1b]0;x\x07", "</pre><img src=x onerror=y>", "a\r<b", "\xff\xfe\x9b1m"} {
		f.Add(s)
	}
	empty := strings.Count(string((&Page{Title: "-", Text: "-", Reason: "-", Lines: []string{"-"}, Route: "-", Request: "-"}).HTML(nil)), "<")
	f.Fuzz(func(t *testing.T, s string) {
		p := Page{Title: "-", Text: "-", Reason: s + "-", Lines: []string{s}, Route: "-", Request: "-"}
		b := string(p.HTML(nil))
		if strings.Count(b, "<") != empty || !utf8.ValidString(b) {
			t.Errorf("%q becomes markup: %s", s, b)
		}
		for _, r := range strings.ReplaceAll(b+string(p.Plain(nil)), "\n", "") {
			if unicode.IsControl(r) {
				t.Errorf("%q leaves %q", s, r)
			}
		}
	})
}
