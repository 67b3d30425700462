package acme

import (
	"context"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
)

// reread takes what the store has by now. A process that is replaced ends its orders, and writes what became of them,
// only after this one has read everything. What cannot be read stays as it was.
func (a *Issuer) reread(ctx context.Context) {
	for name, e := range *a.index.Load() {
		if ctx.Err() != nil {
			return
		}
		var s schedule
		planned := a.readJSON(tryFile(name), &s) == nil
		rec := &kept{}
		known := a.readJSON(certFile(name), rec) == nil && rec.Name == name
		a.mu.Lock()
		if planned {
			e.plan = s
		}
		known = known && !e.unstored && (e.rec == nil || e.rec.Key != rec.Key || e.rec.Chain != rec.Chain)
		a.mu.Unlock()
		if !known {
			continue
		}
		c, err := authority.Parse([]byte(rec.Chain), []byte(rec.Key))
		if err != nil || authority.Covers(c.Leaf, name) != nil {
			continue
		}
		a.mu.Lock()
		e.rec = rec
		e.cert.Store(c)
		a.mu.Unlock()
	}
}
