package pools

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// limited is a pool of one target that takes one connection at once.
func limited(t *testing.T, addr string, queue int, timeout time.Duration) *Pool {
	u := upstream("web", target(t, addr))
	u.Pool.MaxPerTarget, u.Pool.Queue, u.Pool.QueueTimeout = 1, queue, timeout
	return run(t, Options{}, u).Pool("web")
}

func (p *Pool) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.n
}

func TestTheQueueIsFirstComeFirstServed(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 10, 10*time.Second)
	var first Stream
	must(t, p.Open(&Ask{}, &first))
	_, _, err := talk(&first)
	must(t, err)
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			var s Stream
			if err := p.Open(&Ask{}, &s); err != nil {
				t.Error(err)
				return
			}
			if !s.Reused() {
				t.Error("a second connection to a target that takes one")
			}
			_, _, err := talk(&s)
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			s.Close(err == nil)
		})
		until(t, "queued", func() bool { return p.queued() == i+1 })
	}
	first.Close(true)
	wg.Wait()
	for i, n := range order {
		if i != n {
			t.Fatalf("served in the order %v", order)
		}
	}
	if st := p.status(); st.Targets[0].Active != 0 || st.Queued != 0 || st.Targets[0].Idle != 1 {
		t.Fatalf("afterwards: %+v", st)
	}
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 0, 10*time.Second)
	var a, b Stream
	must(t, p.Open(&Ask{}, &a))
	err := p.Open(&Ask{}, &b)
	if kind(err) != "queue_full" || status(err) != 503 {
		t.Fatalf("got %v", err)
	}
	a.Close(false)
	must(t, p.Open(&Ask{}, &b))
	b.Close(false)
}

func TestWaitingEndsAtQueueTimeout(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 5, 20*time.Millisecond)
	var a, b Stream
	must(t, p.Open(&Ask{}, &a))
	if err := p.Open(&Ask{}, &b); kind(err) != "queue_timeout" {
		t.Fatalf("got %v", err)
	}
	if p.queued() != 0 {
		t.Fatal("still queued")
	}
	a.Close(false)
	must(t, p.Open(&Ask{}, &b))
	b.Close(false)
}

func TestAbortEndsWaiting(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 5, time.Minute)
	var a, b Stream
	must(t, p.Open(&Ask{}, &a))
	done := make(chan error)
	go func() { done <- p.Open(&Ask{}, &b) }()
	until(t, "queued", func() bool { return p.queued() == 1 })
	b.Abort()
	if err := <-done; kind(err) != "aborted" {
		t.Fatalf("got %v", err)
	}
	if p.queued() != 0 {
		t.Fatal("still queued")
	}
	if err := p.Open(&Ask{}, &b); kind(err) != "aborted" {
		t.Fatalf("an abort is forgotten before Close: %v", err)
	}
	b.Close(false)
	a.Close(false)
	must(t, p.Open(&Ask{}, &b))
	b.Close(false)
}

// Whoever is granted a slot in the moment it is aborted passes it on.
func TestAbortsAndGrantsThatCrossLoseNoSlot(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 100, time.Minute)
	for range 200 {
		var a, b Stream
		must(t, p.Open(&Ask{}, &a))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = p.Open(&Ask{}, &b)
			b.Close(false)
		}()
		until(t, "queued", func() bool { return p.queued() == 1 })
		go a.Close(false)
		b.Abort()
		<-done
	}
	until(t, "free", func() bool { return p.status().Targets[0].Active == 0 })
}

func TestASlotGrantedToSomebodyWhoLeftGoesToTheNext(t *testing.T) {
	u := upstream("web", targets(1)...)
	u.Pool.MaxPerTarget = 1
	p := balanced(t, u)
	a, b := &waiter{ask: &Ask{}, ready: make(chan struct{}, 1)}, &waiter{ask: &Ask{}, ready: make(chan struct{}, 1)}
	p.mu.Lock()
	p.queue.push(a)
	p.queue.push(b)
	p.pump(p.ps.now())
	p.mu.Unlock()
	if a.m == nil || b.m != nil {
		t.Fatal("not the first was served")
	}
	if _, err := p.waited(a, "aborted"); kind(err) != "aborted" {
		t.Fatalf("got %v", err)
	}
	if b.m == nil || b.m.active != 1 {
		t.Fatal("the slot is lost")
	}
}

func TestATunnelCountsAsAConnection(t *testing.T) {
	p := limited(t, serve(t, name("x")).URL, 5, time.Minute)
	c, m, err := p.Dial(context.Background(), &Ask{})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := p.Dial(ctx, &Ask{}); kind(err) != "timeout" {
		t.Fatalf("got %v", err)
	}
	got := make(chan net.Conn)
	go func() {
		c, m, err := p.Dial(context.Background(), &Ask{})
		if err != nil {
			t.Error(err)
		}
		m.Release(true)
		got <- c
	}()
	until(t, "queued", func() bool { return p.queued() == 1 })
	c.Close()
	m.Release(true)
	(<-got).Close()
	if n := p.ps.conns.Load(); n != 0 {
		t.Fatalf("%d connections counted", n)
	}
}
