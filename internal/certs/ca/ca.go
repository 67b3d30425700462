// Package ca is a CA of our own, for names that no public one gives certificates for.
//
// It promises that a root which somebody may trust is never replaced by itself: one that cannot be read is said and
// kept, and what its intermediate can still sign goes on being signed. Keys are in the state folder (0600) and in
// memory, nowhere else; those of leaves are in memory alone. It opens no socket and has no goroutine.
package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"
)

// How long things live. A leaf can be revoked by nothing but its end, so it has a week: short for whoever steals one,
// long enough for a machine that slept over a weekend and wakes with a slow clock. The intermediate bounds what a copy
// of the state folder is worth once the root has been taken out of the trust stores, and may be renewed unseen: clients
// are sent it. Only the root asks people for something, so it has ten years.
const (
	RootLife         = 3650 * 24 * time.Hour
	IntermediateLife = 90 * 24 * time.Hour
	LeafLife         = 7 * 24 * time.Hour

	backdated = time.Hour // clients whose clock is slow take what is new
)

// The files of the state folder. The first two hold a certificate and its key, and so are written whole or not at all;
// the third is for people.
const (
	RootFile         = "ca-root.pem"
	IntermediateFile = "ca-intermediate.pem"
	PublicFile       = "ca-root.crt"
)

// Store keeps files. Read of one that was never written is fs.ErrNotExist.
type Store interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
}

// Options are what a CA needs.
type Options struct {
	Store Store
	Log   *slog.Logger
	Now   func() time.Time // nil: time.Now
}

// A CA signs leaves. Open it before the first.
type CA struct {
	o    Options
	disk sync.Mutex // held by who writes; taken before mu

	mu     sync.RWMutex // guards what follows
	root   *pair        // nil: not opened, or not readable
	public *x509.Certificate
	inter  *pair
	unkept bool  // root or intermediate are not on the disk yet
	fault  error // why the root cannot be used, or why nothing can be kept
}

// New returns a CA that has read nothing.
func New(o Options) *CA {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &CA{o: o}
}

// Open reads the CA from the state folder, or makes one where none has ever been. It writes nothing: Tend does. An error
// says why no leaf can be signed; a later Open tries again.
func (c *CA) Open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open()
}

// open is Open with mu held.
func (c *CA) open() error {
	if root := c.root; root != nil {
		err := root.isRoot(c.o.Now())
		if err == nil {
			return c.renew()
		}
		c.root = nil // the next Open looks whether there is another, or the clock is right again
		return c.without(root, err)
	}
	text, err := c.o.Store.Read(RootFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c.found()
	}
	root, second := parse(text)
	if err == nil && second == nil {
		err = root.isRoot(c.o.Now())
	} else if err == nil {
		err = second
	}
	if err != nil {
		return c.without(root, err)
	}
	c.root, c.public, c.fault = root, root.cert, nil
	if text, err := c.o.Store.Read(IntermediateFile); err == nil {
		if inter, err := parse(text); err == nil && inter.cert.CheckSignatureFrom(root.cert) == nil {
			c.inter = inter
		} else {
			c.o.Log.Warn("the local CA's intermediate cannot be used and is made anew; who trusts the root needs to do nothing", "file", IntermediateFile, "err", err)
		}
	}
	return c.renew()
}

// found makes a root where there is none.
func (c *CA) found() error {
	root, err := makeRoot(c.o.Now())
	if err != nil {
		return err
	}
	if _, err := c.o.Store.Read(PublicFile); err == nil {
		c.o.Log.Warn("the local CA's root is gone and a new one is made; run \"quaymaster trust\" wherever the old one was trusted", "file", RootFile)
	}
	c.root, c.public, c.inter, c.fault, c.unkept = root, root.cert, nil, nil, true
	c.o.Log.Info("local CA made", "root", root.cert.Subject.CommonName, "fingerprint", Fingerprint(root.cert))
	return c.renew()
}

// without goes on with the intermediate that is left, when the root cannot be read. No new root is made: the old one may
// be trusted in many places, and there may be a backup of it.
func (c *CA) without(broken *pair, why error) error {
	c.fault = unusable(why)
	if broken != nil && broken.cert != nil {
		c.public = broken.cert
	} else if text, err := c.o.Store.Read(PublicFile); err == nil {
		if p, _ := parse(text); p != nil && p.cert != nil {
			c.public = p.cert
		}
	}
	if c.inter == nil {
		if text, err := c.o.Store.Read(IntermediateFile); err == nil {
			if inter, err := parse(text); err == nil {
				c.inter = inter
			}
		}
	}
	if c.inter == nil || !c.inter.cert.NotAfter.After(c.o.Now()) {
		return c.fault
	}
	return nil
}

func unusable(why error) error {
	return fmt.Errorf("the root of the local CA cannot be used: %s: %w", RootFile, why)
}

// renew makes the intermediate where it is missing, has not begun, or two thirds of its life are over.
func (c *CA) renew() error {
	now := c.o.Now()
	if c.root == nil || c.inter != nil && Fresh(c.inter.cert, now) {
		return nil
	}
	if err := c.root.isRoot(now); err != nil {
		return unusable(err)
	}
	inter, err := c.root.intermediate(now)
	if err != nil {
		return err
	}
	c.inter, c.unkept = inter, true
	return nil
}

// Tend renews the intermediate in time, looks again for a root that could not be used, and writes what is not on the disk
// yet. It is called now and then.
func (c *CA) Tend() error {
	c.mu.Lock()
	if c.root == nil && c.fault == nil {
		c.mu.Unlock()
		return nil // nobody has opened it
	}
	err := c.open()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.keep()
}

// keep writes root and intermediate. Leaves are signed meanwhile, however slow the disk is.
func (c *CA) keep() error {
	c.disk.Lock()
	defer c.disk.Unlock()
	c.mu.RLock()
	root, inter, unkept := c.root, c.inter, c.unkept
	c.mu.RUnlock()
	if !unkept || root == nil {
		return nil
	}
	text := root.pem()
	have, err := c.o.Store.Read(RootFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = c.o.Store.Write(RootFile, text)
	case err == nil && !bytes.Equal(have, text): // somebody has put theirs back in the meantime
		c.mu.Lock()
		defer c.mu.Unlock()
		c.root, c.inter, c.unkept = nil, nil, false
		return c.open()
	}
	if err == nil {
		err = c.o.Store.Write(IntermediateFile, inter.pem())
	}
	if err == nil {
		err = c.o.Store.Write(PublicFile, root.certPEM())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fault = fmt.Errorf("the local CA is in memory alone: %w", err)
		return c.fault
	}
	if c.root == root {
		c.fault = nil
		c.unkept = c.inter != inter
	}
	return nil
}

// Fault is what is wrong with the CA; nil when nothing is. Leaves may be signed all the same.
func (c *CA) Fault() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if root := c.root; c.fault == nil && root != nil && c.o.Now().Before(root.cert.NotBefore) {
		return fmt.Errorf("the root of the local CA, %s, begins on %s only: the clock is behind, or was ahead when it was made; then stop quaymaster, move the file away and start again",
			RootFile, root.cert.NotBefore.Format(time.DateTime))
	}
	return c.fault
}

// Root is the certificate that clients are to trust. It is an error while that is not safe on the disk: who trusts it
// would trust nothing after a restart.
func (c *CA) Root() (*x509.Certificate, error) {
	if err := c.keep(); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	switch {
	case c.public != nil:
		return c.public, nil
	case c.fault != nil:
		return nil, c.fault
	}
	return nil, ErrUnused
}

// ErrUnused says that no configuration has wanted the CA yet.
var ErrUnused = errors.New("there is no local CA yet: no route has \"certificate: internal\"")

// Leaf signs a certificate for a DNS name, "*.d" or an IP address, with a key of its own. It touches no disk.
func (c *CA) Leaf(name string) (*tls.Certificate, error) {
	c.mu.Lock()
	err := c.renew() // the machine may have slept
	inter, fault := c.inter, c.fault
	c.mu.Unlock()
	now := c.o.Now()
	switch {
	case err != nil:
		return nil, err
	case inter != nil && now.Before(inter.cert.NotAfter):
		return inter.leaf(name, now)
	case fault != nil:
		return nil, fault
	}
	return nil, ErrUnused
}

// Fresh reports whether a certificate has begun, and less than two thirds of its life are over. One that has not begun was
// made when the clock was ahead.
func Fresh(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(cert.NotBefore) && now.Before(RenewAt(cert))
}

// RenewAt is when two thirds of a certificate's life are over.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}
