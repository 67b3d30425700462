package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// watched is a TCP connection that counts its writes and tells of the first that came to its deadline.
type watched struct {
	*net.TCPConn
	writes atomic.Int64
	struck chan struct{}
	told   atomic.Bool
}

func (c *watched) Write(p []byte) (int, error) {
	c.writes.Add(1)
	n, err := c.TCPConn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && c.told.CompareAndSwap(false, true) {
		close(c.struck)
	}
	return n, err
}

// sealed is a pair of connections with TLS between them, made with a Carrier here.
func sealed(t *testing.T, version uint16) (here *tls.Conn, k *Carrier, w *watched, there *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"there"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := pair(t)
	w = &watched{TCPConn: a, struck: make(chan struct{})}
	k = NewCarrier(w)
	here = tls.Client(k, &tls.Config{InsecureSkipVerify: true, MaxVersion: version, DynamicRecordSizingDisabled: true})
	there = tls.Server(NewCarrier(b), &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	done := make(chan error, 1)
	go func() { done <- there.Handshake() }()
	if err := here.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return here, k, w, there
}

func eachVersion(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) { f(t, v) })
	}
}

func TestSealedMessagesAreOneWrite(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		here, _, under, there := sealed(t, version)
		body := bytes.Repeat([]byte("0123456789abcdef"), 3000)
		for _, f := range []Framing{ByLength, ByChunks, ByClose} {
			before := under.writes.Load()
			var w BodyWriter
			w.Start(here, []byte("HEAD"), f, int64(len(body)))
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
			if n := under.writes.Load() - before; n != 1 {
				t.Errorf("%v: %d writes for a head and %d bytes", f, n, len(body))
			}
			want := "HEAD" + string(body)
			switch f {
			case ByChunks:
				want = "HEADbb80\r\n" + string(body) + "\r\n0\r\n\r\n"
				if err := w.Close(nil); err != nil {
					t.Fatal(err)
				}
			case ByLength:
				if err := w.Close(nil); err != nil || !w.Done() {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(there, got); err != nil || string(got) != want {
				t.Fatalf("%v: other bytes came (%v)", f, err)
			}
		}
	})
}

// A deadline that is kept although a later one is wanted must not end a TLS connection whose receiver is slow.
func TestSealedWritesOutliveADeadlineThatStrikesEarly(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		here, _, under, there := sealed(t, version)
		body := make([]byte, 16<<20)
		_, _ = rand.Read(body)
		var w BodyWriter
		w.Start(here, nil, ByLength, int64(len(body)))
		w.Deadline(time.Now().Add(200 * time.Millisecond))
		w.Deadline(time.Now().Add(time.Minute))
		got := make(chan []byte, 1)
		go func() {
			<-under.struck // until then nothing is read
			b, _ := io.ReadAll(io.LimitReader(there, int64(len(body))))
			got <- b
		}()
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(<-got, body) {
			t.Error("other bytes came")
		}
	})
}

func TestSealedWriteThatStallsEndsTheConnection(t *testing.T) {
	here, k, _, _ := sealed(t, tls.VersionTLS13)
	var w BodyWriter
	w.Start(here, nil, ByLength, 64<<20)
	w.Deadline(time.Now().Add(50 * time.Millisecond))
	if _, err := w.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := here.Write([]byte("x")); err == nil {
		t.Error("a half-written record was followed by another")
	}
	k.Closing()
	if err := here.Close(); err == nil {
		t.Error("the last word was sent behind half a record")
	}
}

// Closing must not wait for a peer that takes nothing: crypto/tls alone would, for five seconds.
func TestClosingWaitsForNobody(t *testing.T) {
	here, k, under, _ := sealed(t, tls.VersionTLS13)
	_ = under.SetWriteBuffer(8 << 10)
	full := make([]byte, 1<<20)
	_ = here.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := under.TCPConn.Write(full); err != nil {
			break
		}
	}
	start := time.Now()
	k.Closing()
	_ = here.Close()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("closing took %v", d)
	}
}

func TestClosingSaysGoodbye(t *testing.T) {
	here, k, _, there := sealed(t, tls.VersionTLS13)
	k.Closing()
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	n, err := there.Read(make([]byte, 1))
	if under, _ := there.NetConn().(*Carrier); n != 0 || !errors.Is(err, io.EOF) || under.Ended() {
		t.Errorf("%d, %v, ended %v", n, err, under.Ended())
	}
}

func TestReadingNowWaitsForNothing(t *testing.T) {
	here, k, _, there := sealed(t, tls.VersionTLS13)
	p := make([]byte, 10)
	k.Now(true)
	if n, err := here.Read(p); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d, %v", n, err)
	}
	k.Now(false)
	if _, err := there.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := here.Read(p); string(p[:n]) != "hello" || err != nil {
		t.Fatalf("%q, %v", p[:n], err)
	}
	if k.Ended() {
		t.Error("ended too early")
	}
	_ = there.NetConn().Close()
	if _, err := here.Read(p); !errors.Is(err, io.EOF) || !k.Ended() {
		t.Errorf("%v, ended %v", err, k.Ended())
	}
}
