package relay

import (
	"io"
	"testing"
	"time"
)

func TestIdleTunnelHoldsTwoDescriptors(t *testing.T) {
	j := join(t, "tcp", "tcp", &Tunnel{})
	b := make([]byte, 4<<20)
	go j.target.Write(make([]byte, len(b)))
	if _, err := io.ReadFull(j.client, b); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		pipes.mu.Lock()
		made := pipes.made
		pipes.mu.Unlock()
		if made == 0 {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d pipes are still open", made)
		}
		<-time.After(20 * time.Millisecond)
	}
	send(t, j.target, "still")
	expect(t, j.client, "still")
}

func TestNoPipesLeft(t *testing.T) {
	pipes.mu.Lock()
	free := pipes.made
	pipes.made = maxPipes
	kept := pipes.free
	pipes.free = nil
	pipes.mu.Unlock()
	defer func() {
		pipes.mu.Lock()
		pipes.made, pipes.free = free, kept
		pipes.mu.Unlock()
	}()
	j := join(t, "tcp", "tcp", &Tunnel{})
	b := make([]byte, 4<<20)
	go j.target.Write(make([]byte, len(b)))
	if _, err := io.ReadFull(j.client, b); err != nil {
		t.Fatal(err)
	}
	j.client.Close()
	j.target.Close()
	j.wait(t)
}
