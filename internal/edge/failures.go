package edge

import "sync"

// failures keeps the last exchanges that went wrong, so that the request id on an error page can be explained.
type failures struct {
	mu   sync.Mutex // guards what follows
	ring [512]failure
	next int
}

type failure struct {
	id   string
	line []byte // as the access log has it, JSON
}

// keep copies the entry over the oldest one.
func (f *failures) keep(e *entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := &f.ring[f.next]
	f.next = (f.next + 1) % len(f.ring)
	slot.id = string(e.ID)
	short := *e // a path of 64 KiB explains nothing, and half a line is no JSON
	short.host, short.target, short.agent = clip(e.host), clip(e.target), clip(e.agent)
	slot.line = short.appendJSON(slot.line[:0])
	if cap(slot.line) > 16<<10 {
		slot.line = append([]byte(nil), slot.line...)
	}
}

// clip keeps the first KiB. A secret in the query stays behind its name and is taken out like any other.
func clip(b []byte) []byte { return b[:min(len(b), 1<<10)] }

// Failure is the access-log line (JSON) of a recent exchange that went wrong, by its request id.
func (e *Edge) Failure(id string) ([]byte, bool) {
	f := &e.failed
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.ring {
		if f.ring[i].id == id && id != "" {
			return append([]byte(nil), f.ring[i].line...), true
		}
	}
	return nil, false
}
