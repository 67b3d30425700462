//go:build !linux

package evict

// gone reports whether the process has ended.
func (p *proc) gone() bool { return !p.same() }
