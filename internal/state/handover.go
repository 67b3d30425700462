package state

import (
	"fmt"
	"os"
	"path/filepath"
)

// Take makes a Dir of the folder and a descriptor of its lock that a predecessor sent, which it takes over. Nothing is
// written before Claim: until then the folder is the predecessor's. A lock of another folder is of no use: it is closed,
// and the folder opened as Open does.
func Take(dir string, lock int) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	f := os.NewFile(uintptr(lock), filepath.Join(dir, lockName))
	if f == nil {
		return nil, fmt.Errorf("state folder %s: its lock was not sent", dir)
	}
	name, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		f.Close()
		return Open(dir)
	}
	defer name.Close()
	if !same(f, name) {
		f.Close()
		return Open(dir)
	}
	return &Dir{path: dir, lock: f}, nil
}

// Claim writes our pid where a predecessor's was.
func (d *Dir) Claim() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return
	}
	if err := d.sign(); err != nil && d.fault == nil {
		d.fault = err
	}
}

// Leave gives the folder to the process that holds a copy of Lock: from now on it is locked for as long as that process
// lives, not for as long as this one does, and every Write is refused. Read goes on.
func (d *Dir) Leave() error {
	d.mu.Lock()
	d.left, d.fault = true, nil
	d.mu.Unlock()
	return d.Close()
}
