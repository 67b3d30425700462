//go:build !linux

package state

// Room is not known here: a write shows it.
func Room(string) error { return nil }
