//go:build !linux

package main

// ended cannot tell a zombie here; the process table must lose the process.
func ended(int) bool { return false }
