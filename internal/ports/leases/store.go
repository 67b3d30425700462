package leases

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	fileName  = "leases.json"
	asideName = "leases-refused.json"
	version   = 1
	maxStored = 1 << 16 // leases in the file; there are not more ports
)

// file is what is kept on the disk: one lease for each name, the newest.
type file struct {
	Version int      `json:"version"`
	Leases  []record `json:"leases"` // by name
}

type record struct {
	Name     string    `json:"name"`
	Port     uint16    `json:"port"`
	Promised bool      `json:"promised,omitempty"`
	Since    time.Time `json:"since"`
}

// save writes the leases as they are now. Provisional ones are among them: after a crash before Commit the name has the
// port that it would have had.
func (ls *Leases) save() error {
	ls.saving.Lock()
	defer ls.saving.Unlock()
	ls.mu.Lock()
	if ls.refuse != nil {
		defer ls.mu.Unlock()
		return ls.refuse
	}
	f := file{Version: version, Leases: []record{}}
	for _, l := range ls.byPort {
		if !l.replaced && !l.leaving {
			f.Leases = append(f.Leases, record{Name: l.name, Port: l.port, Promised: l.promised, Since: l.since.UTC().Round(time.Millisecond)})
		}
	}
	ls.dirty = false
	ls.mu.Unlock()
	slices.SortFunc(f.Leases, func(a, b record) int { return cmp.Compare(a.Name, b.Name) })
	data, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = ls.opt.Store.Write(fileName, append(data, '\n'))
	}
	if err != nil {
		ls.mu.Lock()
		ls.dirty = true
		ls.mu.Unlock()
		ls.poke()
	}
	return err
}

// flush writes what is in memory if the file says something else. Run tries again what fails.
func (ls *Leases) flush() {
	ls.mu.Lock()
	dirty := ls.dirty && ls.refuse == nil
	ls.mu.Unlock()
	if !dirty {
		return
	}
	if err := ls.save(); err != nil {
		ls.opt.Log.Debug("leases not written; trying again", "err", err)
	}
}

// read returns what the file holds. One that cannot be understood is set aside, and the error says so: the daemon starts
// without leases. errUnsafe is a file that could not even be set aside, and must not be overwritten.
func (ls *Leases) read() ([]record, error) {
	data, err := ls.opt.Store.Read(fileName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &unsafeError{err}
	}
	var f file
	err = json.Unmarshal(data, &f)
	switch {
	case err == nil && f.Version != version:
		err = fmt.Errorf("its version is %d, not %d", f.Version, version)
	case err == nil && len(f.Leases) > maxStored:
		err = fmt.Errorf("it holds %d leases", len(f.Leases))
	}
	if err == nil {
		return f.Leases, nil
	}
	if second := ls.opt.Store.Rename(fileName, asideName); second != nil {
		return nil, &unsafeError{errors.Join(err, second)}
	}
	return nil, fmt.Errorf("%s was set aside as %s: %w", fileName, asideName, err)
}

// An unsafeError says that there are leases which cannot be read, and that writing would lose them.
type unsafeError struct{ err error }

func (e *unsafeError) Error() string {
	return fmt.Sprintf("ports are not leased: %s cannot be read, and is not overwritten (%v); mend or remove it, and restart quaymaster", fileName, e.err)
}

func (e *unsafeError) Unwrap() error { return e.err }

// Fault is why no port will be leased until a person has mended something, nil where all is well.
func (ls *Leases) Fault() error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if unsafe := (*unsafeError)(nil); errors.As(ls.refuse, &unsafe) {
		return fmt.Errorf("ports are not leased: %s cannot be read, and is not overwritten: %w", fileName, unsafe.err)
	}
	return nil
}
