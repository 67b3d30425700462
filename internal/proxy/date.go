package proxy

import (
	"net/http"
	"sync/atomic"
	"time"
)

// date keeps the Date field's value (RFC 9110 section 6.6.1) of the present second.
type date struct{ now atomic.Pointer[dated] }

type dated struct {
	second int64
	text   []byte // never changed
}

// at is the value for a moment. It must not be changed.
func (d *date) at(t time.Time) []byte {
	second := t.Unix()
	if p := d.now.Load(); p != nil && p.second == second {
		return p.text
	}
	p := &dated{second, t.UTC().AppendFormat(nil, http.TimeFormat)}
	d.now.Store(p)
	return p.text
}
