package route

import (
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// TestPreviewsLeaveTheOtherHostsOfTheirPortAsTheyAre holds that routes that write no path and those with TLS are asked
// and answered on a port of previews as on any other.
func TestPreviewsLeaveTheOtherHostsOfTheirPortAsTheyAre(t *testing.T) {
	shows := func(name string) *plan.Route {
		return route("preview/"+name, paths("/p/"+name+"/*"), priority(1<<30), func(r *plan.Route) {
			r.Match.Preview = &plan.PreviewMatch{Domain: "localhost", App: name}
		})
	}
	links := route("preview/web/links", priority(1<<30-1), func(r *plan.Route) {
		r.Match.Preview = &plan.PreviewMatch{Domain: "localhost", App: "web", From: "/p/web"}
	})
	sec := route("sec", hosts("sec.test"), ends("sec"))
	p := portOf(t, route("site", hosts("site.test")), sec, shows("web"), shows("api"), links)
	if !p.TLSOnly([]byte("sec.test")) {
		t.Error("plain requests for a host that wants TLS are not sent there")
	}
	for _, path := range []string{
		"/a;b//c/..;/d%2fe%5cf%252f..%00", "/" + strings.Repeat("https%3A%2F%2F", 200), "//" + strings.Repeat("x", maxOdd),
		"/x/../p/web/..%2f", "/p/web/../../a", "/p/web/..%2f..%2fa", "/p/web/../api/x", "/p%2fweb/x", "//p/web/x", "/p/web;x/a", "/p/web%2f..", "/p/webs",
	} {
		if got := ask(p, "GET site.test"+path); got != "site" {
			t.Errorf("%.60s: %s", path, got)
		}
		if got := ask(p, "GET 127.0.0.1"+path); got != "no route" {
			t.Errorf("at an address, %.60s: %s", path, got)
		}
	}
	for _, path := range []string{
		"/p/web", "/p/web/", "/p/w%65b/x", "/p/web/a//b;c%2fd%5ce", "/p/web/a/../b", "/p/web//", "/p/web/" + strings.Repeat("https%3A%2F%2F", 200), "/p/web?a=/../..",
	} {
		if got := ask(p, "GET site.test"+path); got != "preview/web" {
			t.Errorf("%.60s: %s", path, got)
		}
	}
}
