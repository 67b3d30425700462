package preview

import (
	"bytes"
	"testing"
)

func TestTheBaseOfAPageIsPutBelowItsPath(t *testing.T) {
	for page, want := range map[string]string{
		`<!doctype html><html><head><base href="/"><title>x</title></head>`: `<!doctype html><html><head><base href="/p/web/"><title>x</title></head>`,
		`<HEAD><BASE target=_top HREF = '/a/' >`:                            `<HEAD><BASE target=_top HREF = '/p/web/a/' >`,
		`<base href=/ >`:                                                    `<base href=/p/web/ >`,
		`<base href=/>`:                                                     `<base href=/p/web/>`,
		`<base a b="c>d" href="/x">`:                                        `<base a b="c>d" href="/p/web/x">`,
		`<meta content='a"b><base href="/no">'><base href="/">`:             `<meta content='a"b><base href="/no">'><base href="/p/web/">`,
		`<!-- <base href="/"> --><base href="/">`:                           `<!-- <base href="/"> --><base href="/p/web/">`,
		`<script>"<base href='/'>"</script ><base href="/">`:                `<script>"<base href='/'>"</script ><base href="/p/web/">`,
		`<title><base href="/"></TITLE><base href="/">`:                     `<title><base href="/"></TITLE><base href="/p/web/">`,
		`<p title=a"b><base href="/">`:                                      `<p title=a"b><base href="/p/web/">`,

		`<base href="">`: "", `<base href="a/">`: "", `<base href="//other/">`: "", `<base href="http://x/">`: "", `<base href="/p/web/">`: "", `<base>`: "", `<base href>`: "",
		`<based href="/">`: "", `<head></head><base href="/">`: "", `<body><base href="/">`: "", `<base target="href=/"> <base href="/">`: "",
		`<base href="/"`: "", `<script><base href="/">`: "", `<!-- <base href="/">`: "", `plain`: "", ``: "", `<`: "", `a < b <base href="/x`: "", `<base href="`: "", `<base href=`: "",
	} {
		got := page
		if at, _ := Base([]byte(page), "/p/web"); at >= 0 {
			got = page[:at] + "/p/web" + page[at:]
		}
		if want == "" {
			want = page
		}
		if got != want {
			t.Errorf("%s\nbecomes %s\nwant    %s", page, got, want)
		}
	}
}

// FuzzBase reads a page in two parts: what was decided of the first stays.
func FuzzBase(f *testing.F) {
	f.Add([]byte(`<head><meta x='<'><script>x</script><base href="/">`), 10)
	f.Add([]byte(`<!-- --><title></title><base href=/ a=b>`), 30)
	f.Fuzz(func(t *testing.T, page []byte, n int) {
		whole, _ := Base(page, "/p")
		part, more := Base(page[:min(max(n, 0), len(page))], "/p")
		if !more && part != whole {
			t.Errorf("%q: %d of a part, %d of the whole", page, part, whole)
		}
		if whole >= 0 && (whole >= len(page) || page[whole] != '/' || !bytes.Contains(bytes.ToLower(page[:whole]), []byte("<base"))) {
			t.Errorf("%q: %d", page, whole)
		}
	})
}
