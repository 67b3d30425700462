package relay

import (
	"net"
	"testing"
	"time"
)

func watchGone(c net.Conn) (woken chan struct{}, stop func()) {
	woken = make(chan struct{})
	return woken, Gone(c, func() { close(woken) })
}

func TestGoneOnReset(t *testing.T) {
	for _, data := range []string{"", "unread bytes"} {
		far, near := pairOf(t, "tcp")
		send(t, far, data)
		woken, stop := watchGone(near)
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		<-woken
		stop()
	}
}

func TestDataAndFINAreNotGone(t *testing.T) {
	far, near := pairOf(t, "tcp")
	woken, stop := watchGone(near)
	send(t, far, "more")
	far.(*net.TCPConn).CloseWrite()
	select {
	case <-woken:
		t.Error("a half-close was taken for a client that left")
	case <-time.After(100 * time.Millisecond):
	}
	stop()
	expect(t, near, "more")
	expectEOF(t, near)
	select {
	case <-woken:
		t.Error("woken by stop")
	default:
	}
}

func TestGoneOnDeadlineAndClose(t *testing.T) {
	for _, end := range []func(net.Conn){
		func(c net.Conn) { c.Close() },
		func(c net.Conn) { c.SetReadDeadline(time.Unix(1, 0)) },
	} {
		_, near := pairOf(t, "tcp")
		near.SetReadDeadline(time.Now().Add(time.Millisecond)) // an old one, which does not count
		woken, stop := watchGone(near)
		end(near)
		<-woken
		stop()
	}
}
