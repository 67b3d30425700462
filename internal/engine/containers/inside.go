package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"
)

// settle is how long a connection must stay: the helper of an engine that publishes a port takes every connection, and
// closes those for which nobody listens inside.
const settle = 500 * time.Millisecond

var errElsewhere = errors.New("its processes are not to be seen from here")

// Inside is the port that the app listens on in its container.
func (i *instance) Inside() uint16 { return i.data.Inside }

// Listening are the TCP ports that the app listens on in its container, where its first process is to be seen from here.
func (i *instance) Listening() ([]uint16, error) {
	i.mu.Lock()
	pid, at := i.pid, i.pidAt
	i.mu.Unlock()
	if pid <= 1 {
		return nil, errElsewhere
	}
	return listening(pid, i.id, at)
}

// Answers returns nil when the app itself takes connections, not only who publishes its port.
func (i *instance) Answers(ctx context.Context) error {
	if ports, err := i.Listening(); err == nil {
		if slices.Contains(ports, i.data.Inside) {
			return nil
		}
		return fmt.Errorf("nothing listens on %d in its container", i.data.Inside)
	}
	c, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(i.data.Port))))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(settle))
	var one [1]byte
	_, err = c.Read(one[:])
	var late net.Error
	if err == nil || errors.As(err, &late) && late.Timeout() {
		return nil
	}
	return fmt.Errorf("the connection is closed at once: nothing listens on %d in its container", i.data.Inside)
}
