//go:build !linux

package state

// roomy is not known here: a write shows it.
func roomy(string) bool { return true }
