package proxy

import (
	"net/http"
	"testing"
)

// TestPreviewKeepsServiceWorkersBelowItsPath holds that none of an app rules the other pages of the host, where it would
// stay when the app is gone.
func TestPreviewKeepsServiceWorkersBelowItsPath(t *testing.T) {
	tg := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Service-Worker-Allowed", r.Header.Get("X-Scope"))
	})
	h := build(t, shownAt(tg.URL))
	for scope, want := range map[string]string{
		"/": "/p/web/", "": "/p/web/", "../": "/p/web/", "/p/": "/p/web/", "/p/web": "/p/web/", "/p/web2/": "/p/web/", "/p/web/../": "/p/web/",
		"/p/web/%2e%2e/": "/p/web/", "/p/web/a\\..\\..\\": "/p/web/", "http://www.example.com/": "/p/web/", "/p/web/a/": "/p/web/a/",
	} {
		if got := h.ask("GET", "/p/web/sw.js", "Service-Worker: script", "X-Scope: "+scope).Header.Get("Service-Worker-Allowed"); got != want {
			t.Errorf("%q becomes %q, want %q", scope, got, want)
		}
	}
	if a := h.ask("GET", "/p/web", "Service-Worker: script"); a.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("a worker whose folder is that of all previews: %d", a.StatusCode)
	}
}
