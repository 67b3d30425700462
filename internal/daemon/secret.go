package daemon

import (
	"crypto/rand"
	"errors"
	"io/fs"
)

// The key under which sticky cookies name their targets: kept, so that they mean the same after a restart and in a
// successor. It gives no right to anything.
const (
	keyFile = "sticky.key"
	keySize = 32 // bytes
)

// stickyKey reads the key, or makes one. One that cannot be kept serves for as long as this process.
func (d *Daemon) stickyKey() []byte {
	key, err := d.state.Read(keyFile)
	if err == nil && len(key) == keySize {
		return key
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("sticky cookies will be forgotten", "err", err)
	}
	key = make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	if err := d.state.Write(keyFile, key); err != nil {
		d.log.Warn("sticky cookies will be forgotten at the next restart", "err", err)
	}
	return key
}
