package route

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/quaymaster/quaymaster/internal/plan"
	"github.com/quaymaster/quaymaster/internal/preview"
)

// shown is what the routes of previews ask of the rest of their plan.
type shown struct {
	hosts map[string]struct{} // that routes of the file spell out
	apps  map[string]struct{} // that have a preview
}

// shown gathers it; nil where no route asks.
func (b *builder) shown() *shown {
	var s *shown
	for _, r := range b.plan.Routes {
		b.yield()
		if p := r.Match.Preview; p != nil {
			if s == nil {
				s = &shown{hosts: map[string]struct{}{}, apps: map[string]struct{}{}}
			}
			s.apps[p.App] = struct{}{}
		}
	}
	if s == nil {
		return nil
	}
	for _, r := range b.plan.Routes {
		b.yield()
		if r.Source != plan.FromFile {
			continue
		}
		for _, d := range r.Match.Domains {
			if d[0] != '*' {
				s.hosts[d] = struct{}{}
			}
		}
	}
	return s
}

func (s *shown) knows(app []byte) bool {
	_, ok := s.apps[string(app)]
	return ok
}

// previewFault judges the conditions that only routes of previews have.
func (r *rule) previewFault(q *Request, pool *sync.Pool) fault {
	want := r.Route.Match.Preview
	if r.below != "" && !belowAll(pathOf(q.Target), r.below, pool) {
		return faultPath
	}
	m := &q.memo
	if !m.known { // there may be hundreds of previews, and what they ask is the same
		var buf [maxHost]byte
		host := normalise(buf[:0], q.Host)
		_, named := r.shown.hosts[string(host)]
		from, _ := q.field("Referer")
		*m = memo{known: true, shows: named || preview.Local(host, want.Domain), page: preview.OnHost(from, q.Host)}
	}
	switch {
	case !m.shows:
		return faultForeign
	case want.From != "" && !preview.Below(m.page, want.From), want.Alone && !r.alone(q):
		return faultPage
	}
	return faultNone
}

// memo is what the routes of previews know of one request.
type memo struct {
	known bool
	shows bool   // the host is one for previews
	page  []byte // of the host, that asks
}

// belowAll reports whether a path is base or below it under every reading. Base has nothing in it that can be read in two
// ways. A path of which that is not sure is none of a preview: it may be another route's, which takes it as it is.
func belowAll(path []byte, base string, pool *sync.Pool) bool {
	i := 0
	for j := range len(base) {
		if i >= len(path) {
			return false
		}
		c := path[i]
		if c == '%' {
			if v, ok := unhex(path, i); ok && v != '/' {
				c = v
				i += 2
			}
		}
		if c != base[j] {
			return false
		}
		i++
	}
	if i < len(path) && path[i] != '/' {
		return false
	}
	odd, _ := survey(path)
	if odd&dropDots == 0 {
		return true // nothing leads up again
	}
	if len(path) > maxOdd || bits.OnesCount16(uint16(odd)) > maxOddities {
		return false
	}
	s := pool.Get().(*scratch)
	defer pool.Put(s)
	for f := odd; ; f = (f - 1) & odd {
		p := s.read(path, f)
		if len(p) < len(base) || string(p[:len(base)]) != base || len(p) > len(base) && p[len(base)] != '/' {
			return false
		}
		if f == 0 {
			return true
		}
	}
}

// alone reports whether the browser says that one of its pages on this host asks, and that of all previews it has opened
// the one of the rule alone.
func (r *rule) alone(q *Request) bool {
	if q.Protocols&plan.ProtoWebSocket != 0 {
		if origin, _ := q.field("Origin"); !preview.Same(origin, q.Host) {
			return false
		}
	} else if site, _ := q.field("Sec-Fetch-Site"); string(site) != "same-origin" {
		return false
	}
	cookie, _ := q.field("Cookie")
	return preview.Alone(cookie, r.Route.Match.Preview.App, r.shown.knows)
}

func (q *Request) field(name string) ([]byte, bool) {
	if q.Fields == nil {
		return nil, false
	}
	return q.Fields.Field(name)
}

// previewReason is a fault of previewFault in words.
func (r *rule) previewReason(f fault, q *Request) string {
	p := r.Route.Match.Preview
	switch {
	case f == faultForeign:
		return fmt.Sprintf("host %q is neither an address nor localhost, nor %s or below it, nor named by a route of the file: a preview does not answer to it", q.Host, p.Domain)
	case p.From != "":
		return "no page below " + p.From + " asks (Referer)"
	}
	return "the browser does not say that a page asks and that the preview of " + p.App + " is the only one it has opened"
}
