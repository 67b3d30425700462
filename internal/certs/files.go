package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// file is a certificate and its key in files, and what was read of them last that could be used.
type file struct {
	src   plan.CertSource
	now   atomic.Pointer[loaded] // nil only before its first Commit
	fault atomic.Pointer[fault]  // nil: what the files hold now is what serves

	tried stamp // of the content that could not be used; owned by whoever holds Certs.mu
	bad   error // why
}

type fault struct {
	err   error
	since time.Time
}

// loaded is one content of the files.
type loaded struct {
	cert  *tls.Certificate
	names []string // those in the certificate
	stamp stamp
}

// stamp tells one content of two files from another without reading them.
type stamp struct{ cert, key fileStamp }

type fileStamp struct {
	info     [3]int64 // time, size, and a number of the file where the system has one
	readable bool
}

// certificate is what clients are shown.
func (f *file) certificate() *tls.Certificate {
	if l := f.now.Load(); l != nil {
		return l.cert
	}
	return nil
}

// read returns the content of the files; nil when it is the one that serves already.
func (f *file) read() (*loaded, error) {
	at, err := f.stat()
	if err != nil {
		return nil, err
	}
	if l := f.now.Load(); l != nil && l.stamp == at {
		return nil, nil
	}
	certPEM, err := readFile(f.src.CertFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(f.src.KeyFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", f.src.CertFile, f.src.KeyFile, plain(err))
	}
	l := &loaded{cert: &cert, stamp: at}
	for _, n := range cert.Leaf.DNSNames {
		l.names = append(l.names, strings.ToLower(n))
	}
	for _, ip := range cert.Leaf.IPAddresses {
		l.names = append(l.names, canonical(ip.String()))
	}
	return l, nil
}

// plain cuts the prefix of crypto/tls off.
func plain(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), "tls: "))
}

// stat says what the files are like at this moment.
func (f *file) stat() (stamp, error) {
	a, err := statFile(f.src.CertFile)
	b, second := statFile(f.src.KeyFile)
	if err == nil {
		err = second
	}
	return stamp{a, b}, err
}

func statFile(name string) (fileStamp, error) {
	i, err := os.Stat(name) // through links, which is how certbot and Kubernetes replace
	if err != nil {
		return fileStamp{}, err
	}
	if !i.Mode().IsRegular() {
		return fileStamp{}, fmt.Errorf("%s is no file", name)
	}
	return fileStamp{info: [3]int64{i.ModTime().UnixNano(), i.Size(), inode(i)}, readable: true}, nil
}

// maxFile bounds what is read of a file.
const maxFile = 1 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return b, err
}

// watch takes what the files hold by now. Certificate and key are two files and change at two moments: what cannot be
// used is said only when it has stayed the same from one look to the next.
func (c *Certs) watch(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var breath plan.Breath
	defer breath.End()
	for _, f := range c.now.Load().files {
		breath.Take()
		if ctx.Err() != nil {
			return
		}
		at, _ := f.stat()
		if f.bad != nil && f.tried == at {
			if f.fault.Load() == nil {
				c.spoilt(f, f.bad)
			}
			continue
		}
		l, err := f.read()
		f.tried, f.bad = at, err
		if err != nil {
			continue
		}
		if l != nil {
			c.replaced(f, l)
		}
		f.fault.Store(nil)
	}
}

// replaced makes a new content serve.
func (c *Certs) replaced(f *file, l *loaded) {
	old := f.now.Swap(l)
	if old == nil || old.cert.Leaf.Equal(l.cert.Leaf) {
		return
	}
	c.o.Log.Info("certificate replaced", "path", f.src.CertFile, "until", l.cert.Leaf.NotAfter)
	c.o.Events("certificate.renewed", f.name(), "from "+f.src.CertFile)
	c.staples.stir()
}

// spoilt says that the files changed and cannot be used; what they held before goes on serving.
func (c *Certs) spoilt(f *file, err error) {
	if was := f.fault.Load(); was != nil && was.err.Error() == err.Error() {
		return
	}
	f.fault.Store(&fault{err: err, since: c.o.Now()})
	c.o.Log.Error("certificate files cannot be used; the certificate that they held before goes on serving", "path", f.src.CertFile, "err", err)
	c.o.Events("certificate.failing", f.name(), err.Error()+"; the old certificate goes on serving")
}

// name is what people call the certificate: its first name, else its file.
func (f *file) name() string {
	if l := f.now.Load(); l != nil && len(l.names) > 0 {
		return l.names[0]
	}
	return f.src.CertFile
}
