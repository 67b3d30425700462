package proxy

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/quaymaster/quaymaster/internal/pools"
	"github.com/quaymaster/quaymaster/internal/relay"
	"github.com/quaymaster/quaymaster/internal/wire"
)

// upgrade turns the exchange into a connection both ways after the target's 101. Not a byte goes raw before that.
func (f *forward) upgrade(t *turn) {
	ex := t.ex
	defer t.stream.Close(false)
	if len(t.out.Upgrade) == 0 || !wire.EqualFold(t.in.Upgrade, "websocket") {
		t.blame("101 for another protocol than was asked for")
		t.fail(http.StatusBadGateway, "bad_answer", errors.New("the target switched to a protocol that was not asked for"))
		return
	}
	if len(f.prefix) > 0 {
		f.under(t)
	}
	f.response.apply(&t.in, t)
	t.watch.pause()
	ex.Log.Status, ex.Log.First = http.StatusSwitchingProtocols, since(ex.Start)
	cb, cs, err := ex.Out.Switch(&t.in)
	if err != nil {
		ex.Log.Reason, ex.Log.Detail = "client_gone", err.Error()
		return
	}
	tb, ts := t.stream.Switch()
	clocks := &t.r.Plan.Timeouts
	both := &relay.Upgraded{WebSocket: true, Idle: clocks.Idle, Stall: clocks.BodyStall, Up: &t.r.in, Down: &t.r.out}
	farewell := both.GoAway
	ex.Conn.Farewell.Store(&farewell)
	res := relay.Both(cb, cs, tb, ts, both)
	ex.Conn.Farewell.Store(nil)
	ex.Log.In, ex.Log.Out = res.Up, res.Down
	if res.Cause != relay.EOF {
		ex.Log.Reason = res.Cause.String()
	}
}

// openName opens a connection to the host that the client asks for.
func (t *turn) openName() error {
	authority := t.ex.Req.Authority
	port, ok := portOf(authority)
	if !ok {
		return &pools.Error{Kind: "not_allowed", Err: errors.New("the port is out of range")}
	}
	return t.r.o.Pools.OpenName(context.Background(), string(hostOf(authority)), port, &t.ask, &t.stream)
}

// portOf is the port of an authority, 80 where it names none.
func portOf(authority []byte) (uint16, bool) {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || i == len(authority)-1 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return 80, true
	}
	n, err := strconv.ParseUint(string(authority[i+1:]), 10, 16)
	return uint16(n), err == nil && n > 0
}
