package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/state"
)

// clock is a time that a test sets.
type clock struct{ now time.Time }

func open(t *testing.T, dir string, c *clock) *CA {
	t.Helper()
	st, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	ca := New(Options{Store: st, Now: func() time.Time { return c.now }})
	t.Cleanup(func() { _ = st.Close() })
	return ca
}

func start() *clock { return &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

// accepted wants a client that trusts root to accept the leaf for name.
func accepted(t *testing.T, root *x509.Certificate, leaf *tls.Certificate, name string, at time.Time) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, der := range leaf.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: at}); err != nil {
		t.Errorf("%s at %s: %v", name, at, err)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestT10_LeavesAreShortAndAccepted(t *testing.T) {
	k := start()
	ca := open(t, t.TempDir(), k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	root := must[*x509.Certificate](t)(ca.Root())
	for name, ask := range map[string]string{"a.test": "a.test", "*.b.test": "x.b.test", "127.0.0.1": "127.0.0.1", "::1": "::1"} {
		leaf := must[*tls.Certificate](t)(ca.Leaf(name))
		accepted(t, root, leaf, ask, k.now)
		accepted(t, root, leaf, ask, k.now.Add(LeafLife-time.Second))
		if life := leaf.Leaf.NotAfter.Sub(k.now); life != LeafLife {
			t.Errorf("%s lives for %s", name, life)
		}
		if leaf.Leaf.VerifyHostname("other.test") == nil {
			t.Errorf("the leaf of %s is for other.test, too", name)
		}
	}
}

func TestOpen_IsTheSameAfterARestart(t *testing.T) {
	dir, k := t.TempDir(), start()
	first := open(t, dir, k)
	if err := first.Open(); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("Open wrote: %v", list)
	}
	if err := first.Tend(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{RootFile, IntermediateFile, PublicFile} {
		if i, err := os.Stat(filepath.Join(dir, name)); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, i, err)
		}
	}
	if text, _ := os.ReadFile(filepath.Join(dir, PublicFile)); bytes.Contains(text, []byte("PRIVATE")) {
		t.Error("the public file has a key in it")
	}
	_ = first.o.Store.(*state.Dir).Close()
	second := open(t, dir, k)
	if err := second.Open(); err != nil {
		t.Fatal(err)
	}
	leaf := must[*tls.Certificate](t)(second.Leaf("a.test"))
	accepted(t, must[*x509.Certificate](t)(first.Root()), leaf, "a.test", k.now)
	if !second.inter.cert.Equal(first.inter.cert) {
		t.Error("a new intermediate was made")
	}
}

func TestTend_RenewsTheIntermediateAtTwoThirds(t *testing.T) {
	k := start()
	ca := open(t, t.TempDir(), k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	root, old := must[*x509.Certificate](t)(ca.Root()), ca.inter.cert
	k.now = RenewAt(old).Add(-time.Second)
	if err := ca.Tend(); err != nil || !ca.inter.cert.Equal(old) {
		t.Errorf("before its time: %v", err)
	}
	k.now = RenewAt(old)
	if err := ca.Tend(); err != nil || ca.inter.cert.Equal(old) {
		t.Errorf("in its time: %v", err)
	}
	accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
	if _, err := ca.o.Store.Read(IntermediateFile); err != nil || ca.unkept {
		t.Errorf("not kept: %v", err)
	}
}

// A clock that was ahead for a while leaves nothing behind that clients do not take yet.
func TestT10_AnIntermediateThatHasNotBegunIsMadeAnew(t *testing.T) {
	k := start()
	ca := open(t, t.TempDir(), k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	root := must[*x509.Certificate](t)(ca.Root())
	right := k.now
	k.now = right.Add(IntermediateLife)
	if err := ca.Tend(); err != nil {
		t.Fatal(err)
	}
	k.now = right
	accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
	if err := ca.Tend(); err != nil || ca.Fault() != nil || ca.unkept {
		t.Errorf("%v, %v, unkept: %v", err, ca.Fault(), ca.unkept)
	}
	made := ca.inter.cert
	if err := ca.Tend(); err != nil || !ca.inter.cert.Equal(made) {
		t.Errorf("made again and again: %v", err)
	}
}

// A root is never replaced by itself: that clients do not take it yet is said.
func TestT10_ARootThatHasNotBegunIsSaid(t *testing.T) {
	k := start()
	right := k.now
	k.now = right.Add(48 * time.Hour)
	ca := open(t, t.TempDir(), k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	root := must[*x509.Certificate](t)(ca.Root())
	k.now = right
	if err := ca.Tend(); err != nil {
		t.Error(err)
	}
	if leaf := must[*tls.Certificate](t)(ca.Leaf("a.test")); leaf.Leaf.NotBefore.After(k.now) {
		t.Errorf("a leaf from %s on at %s", leaf.Leaf.NotBefore, k.now)
	}
	if err := ca.Fault(); err == nil || !strings.Contains(err.Error(), RootFile) || !strings.Contains(err.Error(), "clock") {
		t.Errorf("Fault: %v", err)
	}
	k.now = right.Add(49 * time.Hour)
	if err := ca.Tend(); err != nil || ca.Fault() != nil {
		t.Errorf("in its time: %v, %v", err, ca.Fault())
	}
	accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
}

// When the root ends nothing is signed by it, and nothing is written over and over.
func TestT10_ARootThatEndsWhileItIsUsedIsSaid(t *testing.T) {
	dir, k := t.TempDir(), start()
	ca := open(t, dir, k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	root := must[*x509.Certificate](t)(ca.Root())
	right := k.now
	k.now = right.Add(RootLife - 30*24*time.Hour)
	if err := ca.Tend(); err != nil {
		t.Fatal(err)
	}
	files := func() string {
		return string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, RootFile)))) + string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, IntermediateFile))))
	}
	was := files()
	k.now = right.Add(RootLife + time.Hour)
	for range 2 {
		if _, err := ca.Leaf("a.test"); err == nil || !strings.Contains(err.Error(), "ended on") {
			t.Errorf("Leaf: %v", err)
		}
		if err := ca.Tend(); err == nil || ca.Fault() == nil || !strings.Contains(err.Error(), "ended on") {
			t.Errorf("Tend: %v, Fault %v", err, ca.Fault())
		}
	}
	if files() != was {
		t.Error("something was written")
	}
	k.now = right.Add(RootLife - 20*24*time.Hour) // it was the clock
	if err := ca.Tend(); err != nil || ca.Fault() != nil {
		t.Errorf("the clock is right again: %v, %v", err, ca.Fault())
	}
	accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
}

// broken spoils a file of the state folder in several ways.
var broken = map[string]func(text []byte) []byte{
	"empty":  func([]byte) []byte { return nil },
	"cut":    func(text []byte) []byte { return text[:len(text)/3] },
	"no key": func(text []byte) []byte { return text[:bytes.Index(text, []byte("-----BEGIN PRIVATE"))] },
	"no CA":  func([]byte) []byte { return []byte("hello") },
	"twisted": func(text []byte) []byte {
		return append(bytes.Clone(text[:100]), append([]byte("AAAAAAAA"), text[108:]...)...)
	},
}

func TestD02_ARootThatCannotBeReadIsKeptAndSaid(t *testing.T) {
	for how, spoil := range broken {
		t.Run(how, func(t *testing.T) {
			dir, k := t.TempDir(), start()
			first := open(t, dir, k)
			if err := first.Open(); err != nil {
				t.Fatal(err)
			}
			root := must[*x509.Certificate](t)(first.Root())
			_ = first.o.Store.(*state.Dir).Close()
			file := filepath.Join(dir, RootFile)
			whole := must[[]byte](t)(os.ReadFile(file))
			bad := spoil(whole)
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}

			ca := open(t, dir, k)
			if err := ca.Open(); err != nil || ca.Fault() == nil || !strings.Contains(ca.Fault().Error(), RootFile) {
				t.Errorf("Open %v, Fault %v", err, ca.Fault())
			}
			accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
			if got, err := ca.Root(); err != nil || !got.Equal(root) {
				t.Errorf("Root: %v, %v", got, err)
			}
			_ = ca.Tend()
			if now := must[[]byte](t)(os.ReadFile(file)); !bytes.Equal(now, bad) {
				t.Error("the file was written")
			}

			k.now = k.now.Add(IntermediateLife + time.Hour) // nothing is left to sign with
			if _, err := ca.Leaf("a.test"); err == nil {
				t.Error("a leaf, signed by an intermediate that has ended")
			}
			if now := must[[]byte](t)(os.ReadFile(file)); !bytes.Equal(now, bad) {
				t.Error("a new root was made where the old one may be trusted")
			}

			if err := os.WriteFile(file, whole, 0o600); err != nil { // the backup
				t.Fatal(err)
			}
			if err := ca.Tend(); err != nil {
				t.Error(err)
			}
			accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
			if ca.Fault() != nil {
				t.Errorf("mended: %v", ca.Fault())
			}
		})
	}
}

func TestD02_ARootThatWasMovedAwayIsMadeAnew(t *testing.T) {
	dir, k := t.TempDir(), start()
	if err := os.WriteFile(filepath.Join(dir, RootFile), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := open(t, dir, k)
	if err := ca.Open(); err == nil {
		t.Error("a root of one question mark")
	}
	if _, err := ca.Leaf("a.test"); err == nil {
		t.Error("a leaf by nobody")
	}
	if err := os.Rename(filepath.Join(dir, RootFile), filepath.Join(dir, RootFile+".bad")); err != nil {
		t.Fatal(err)
	}
	if err := ca.Tend(); err != nil {
		t.Error(err)
	}
	accepted(t, must[*x509.Certificate](t)(ca.Root()), must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
	if ca.Fault() != nil {
		t.Error(ca.Fault())
	}
}

func TestD02_AnIntermediateThatCannotBeReadIsMadeAnew(t *testing.T) {
	dir, k := t.TempDir(), start()
	first := open(t, dir, k)
	if err := first.Open(); err != nil {
		t.Fatal(err)
	}
	root := must[*x509.Certificate](t)(first.Root())
	_ = first.o.Store.(*state.Dir).Close()
	if err := os.WriteFile(filepath.Join(dir, IntermediateFile), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := open(t, dir, k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	accepted(t, root, must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
	if ca.Fault() != nil {
		t.Error(ca.Fault())
	}
}

func TestD02_ADiskThatTakesNothingIsSaidAndTriedAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "" {
			t.Skip("LOUD SKIP: only root can mount a disk that is read-only")
		}
		t.Fatal("only root can mount a disk that is read-only")
	}
	dir, k := t.TempDir(), start()
	if err := unix.Mount("ca-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("ca-test", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	ca := open(t, dir, k)
	if err := ca.Open(); err != nil {
		t.Error(err)
	}
	leaf := must[*tls.Certificate](t)(ca.Leaf("a.test")) // serving goes on
	if err := ca.Tend(); err == nil || ca.Fault() == nil {
		t.Error("nothing was said")
	}
	if root, err := ca.Root(); err == nil {
		t.Errorf("a root to trust that is gone with the process: %v", root.Subject)
	}
	if err := unix.Mount("ca-test", dir, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if err := ca.Tend(); err != nil || ca.Fault() != nil {
		t.Errorf("writable: %v, %v", err, ca.Fault())
	}
	accepted(t, must[*x509.Certificate](t)(ca.Root()), leaf, "a.test", k.now)
}

func TestRoot_OfACAThatNobodyWants(t *testing.T) {
	dir := t.TempDir()
	ca := open(t, dir, start())
	if _, err := ca.Root(); err == nil {
		t.Error("a root")
	}
	if err := ca.Tend(); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("written: %v", list)
	}
}

func TestKeep_ARootThatIsPutBackWins(t *testing.T) {
	dir, k := t.TempDir(), start()
	theirs := open(t, t.TempDir(), k)
	if err := theirs.Open(); err != nil {
		t.Fatal(err)
	}
	ca := open(t, dir, k)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, RootFile), theirs.root.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ca.Tend(); err != nil {
		t.Fatal(err)
	}
	accepted(t, must[*x509.Certificate](t)(theirs.Root()), must[*tls.Certificate](t)(ca.Leaf("a.test")), "a.test", k.now)
}

// stuck is a store whose disk does not answer, from the first Write on.
type stuck struct {
	Store
	once    sync.Once
	writing chan struct{} // closed when one has begun
	over    chan struct{} // until which it lasts
}

func (s *stuck) Write(name string, data []byte) error {
	s.once.Do(func() { close(s.writing) })
	<-s.over
	return s.Store.Write(name, data)
}

func TestLeaf_WaitsForNoDisk(t *testing.T) {
	k := start()
	ca := open(t, t.TempDir(), k)
	disk := &stuck{Store: ca.o.Store, writing: make(chan struct{}), over: make(chan struct{})}
	ca.o.Store = disk
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	kept := make(chan error)
	go func() {
		err := ca.Tend()
		kept <- err
	}()
	<-disk.writing
	signed := make(chan error)
	go func() {
		_, err := ca.Leaf("a.test")
		signed <- err
	}()
	select {
	case err := <-signed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a leaf waits for the disk")
	}
	close(disk.over)
	if err := <-kept; err != nil {
		t.Error(err)
	}
}
