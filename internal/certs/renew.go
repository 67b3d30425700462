package certs

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// Renew makes or orders the certificate of that name anew, or reads its files again. An error that is ErrNone says that
// no certificate has the name.
func (c *Certs) Renew(name string) error {
	name = canonical(name)
	x := c.now.Load()
	known := false
	if s := x.local[name]; s != nil {
		known = true
		s.mu.Lock()
		s.again = c.o.Now()
		err := s.make(c)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		c.o.Log.Info("certificate renewed", "host", name, "source", "internal")
		c.o.Events("certificate.renewed", name, "by the local CA, as asked")
	}
	if f := x.named[name]; f != nil {
		known = true
		if err := c.readAgain(f); err != nil {
			return err
		}
	}
	if x.auto[name] || under(x.demand, name) {
		return c.auto.Renew(name)
	}
	if !known {
		return fmt.Errorf("%w: %s", ErrNone, name)
	}
	return nil
}

// readAgain takes what the files hold, whenever that was written.
func (c *Certs) readAgain(f *file) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, err := f.read()
	if err != nil {
		c.spoilt(f, err)
		return err
	}
	if l != nil {
		c.replaced(f, l)
	}
	f.fault.Store(nil)
	return nil
}

// Root is the root of the local CA.
func (c *Certs) Root() (*x509.Certificate, error) { return c.ca.Root() }

// PEM writes a certificate as files have it.
func PEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
