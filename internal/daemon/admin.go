package daemon

import (
	"context"
	"net"
	"time"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// openAdmin listens on the admin socket and, where one is written, on the admin address. They are closed last, so that
// status and metrics answer until the last connection has left.
func (d *Daemon) openAdmin(set *plan.Settings) error {
	d.undo.push("admin", d.closeAdmin)
	l, err := d.ports.ListenAdmin(d.admin.Socket, d.admin.Mode, d.admin.Group)
	if err != nil {
		return err
	}
	d.serveAdmin("admin socket", l, api.Socket)
	if set.Admin.Address == "" {
		return nil
	}
	if l, err = d.ports.ListenTCP("admin", set.Admin.Address); err != nil {
		return err
	}
	d.serveAdmin("admin address", l, api.TCP)
	return nil
}

func (d *Daemon) serveAdmin(name string, l net.Listener, kind api.Kind) {
	d.work(d.life, name, func(context.Context) error { return d.api.Serve(l, kind) })
}

// closeAdmin lets answers under way finish; nothing new is taken. It gets its own second, since the budget of the
// drain may be used up.
func (d *Daemon) closeAdmin(context.Context) {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if err := d.api.Close(ctx); err != nil {
		d.log.Warn("admin requests cut", "err", err)
	}
}
