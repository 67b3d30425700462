package main

import (
	"fmt"
	"testing"
)

// TestA01_ASiteOfThePreviewsNameComesFirst gives a preview the name and the port of a site. The site listens at all
// addresses and the preview at one, which makes it no narrower.
func TestA01_ASiteOfThePreviewsNameComesFirst(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	q := startApps(t, previews(t, port, previewEntry(t, "one", "")+previewEntry(t, "two", ""))+fmt.Sprintf("sites:\n  http://one.localhost:%d: app:two\n", port))
	q.appIs("one", "ready")
	q.appIs("two", "ready")
	for _, c := range []struct{ host, path, want string }{
		{"one.localhost", "/whoami", "two"},
		{"two.localhost", "/whoami", "two"},
		{"one.localhost", "/app/preview/one/whoami", "one"},
	} {
		if status, body, err := fetch(port, c.host, c.path); status != 200 || body != c.want || err != nil {
			t.Errorf("%s%s: %d %q %v", c.host, c.path, status, body, err)
		}
	}
}
