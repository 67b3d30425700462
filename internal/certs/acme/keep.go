package acme

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/authority"
)

const (
	certPrefix = "acme-cert-"
	tryPrefix  = "acme-try-"
	maxPlain   = 120                 // bytes of a name that is its file's name
	keepDead   = 30 * 24 * time.Hour // how long the files of a certificate stay whose time is over and that nobody wants
)

// kept is a certificate as it is stored: key, chain and what is known of them in one file, which is there as a whole or
// not at all.
type kept struct {
	Name      string    `json:"name"`
	Directory string    `json:"directory"`
	Profile   string    `json:"profile,omitempty"`
	Challenge string    `json:"challenge,omitempty"`
	Obtained  time.Time `json:"obtained"`
	Key       string    `json:"key"`
	Chain     string    `json:"chain"`
}

func certFile(name string) string { return certPrefix + plainName(name) + ".json" }

func tryFile(name string) string { return tryPrefix + plainName(name) + ".json" }

// plainName is a file name for a name: no two have the same.
func plainName(name string) string {
	if d, ok := strings.CutPrefix(name, "*."); ok {
		name = "_." + d // no host's name begins like this
	}
	if len(name) > maxPlain {
		sum := sha256.Sum256([]byte(name))
		return name[:maxPlain-40] + "_" + hex.EncodeToString(sum[:16])
	}
	return name
}

// read makes an entry of what the store has. What cannot be used is as good as not there: it is ordered anew.
func (a *Issuer) read(name string) *entry {
	e := &entry{name: name}
	if err := a.readJSON(tryFile(name), &e.plan); err != nil {
		a.o.Log.Error("the schedule of a certificate begins anew", "host", name, "err", err)
		e.plan = schedule{}
	}
	rec := &kept{}
	err := a.readJSON(certFile(name), rec)
	if err == nil && rec.Name == "" {
		return e
	}
	if err == nil && rec.Name != name {
		err = fmt.Errorf("it is for %s", rec.Name)
	}
	if err == nil {
		c, perr := authority.Parse([]byte(rec.Chain), []byte(rec.Key))
		if perr == nil {
			perr = authority.Covers(c.Leaf, name)
		}
		if err = perr; err == nil {
			e.rec = rec
			e.cert.Store(c)
			return e
		}
	}
	a.o.Log.Error("a stored certificate cannot be used: it is ordered anew", "host", name, "file", certFile(name), "err", err)
	return e
}

// readJSON leaves v alone when there is no such file.
func (a *Issuer) readJSON(file string, v any) error {
	raw, err := a.store.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// save writes a certificate.
func (a *Issuer) save(rec *kept) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return a.store.Write(certFile(rec.Name), raw)
}

// note writes a schedule. One that cannot be written costs no order: it counts for as long as we run.
func (a *Issuer) note(name string, s schedule) {
	var err error
	if s == (schedule{}) {
		err = a.store.Remove(tryFile(name))
	} else {
		var raw []byte
		if raw, err = json.Marshal(s); err == nil {
			err = a.store.Write(tryFile(name), raw)
		}
	}
	if err != nil {
		a.o.Log.Error("the schedule of a certificate is kept in memory only", "host", name, "err", err)
	}
}

func (a *Issuer) storeFault() string {
	if err := a.store.Fault(); err != nil {
		return err.Error()
	}
	return "it could not be written"
}

// sweep removes the files of names that nobody wants and whose certificates ended long ago.
func (a *Issuer) sweep() {
	files, err := a.store.List(certPrefix)
	if err != nil {
		return // it says so wherever something is read or written
	}
	dead := a.o.Clock.Now().Add(-keepDead)
	for _, f := range files {
		rec := &kept{}
		if a.readJSON(f, rec) != nil || rec.Name == "" || certFile(rec.Name) != f || (*a.index.Load())[rec.Name] != nil {
			continue
		}
		c, err := authority.Parse([]byte(rec.Chain), []byte(rec.Key))
		if err != nil || c.Leaf.NotAfter.After(dead) {
			continue
		}
		if err := errors.Join(a.store.Remove(f), a.store.Remove(tryFile(rec.Name))); err != nil {
			a.o.Log.Error("an old certificate cannot be removed", "host", rec.Name, "err", err)
			return
		}
	}
}
