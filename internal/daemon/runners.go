package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/quaymaster/quaymaster/internal/apps/process"
	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/engine"
	"github.com/quaymaster/quaymaster/internal/engine/containers"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// runners are those who run apps, by kind.
func (d *Daemon) runners(e *engine.Engine, log *slog.Logger) func(*plan.App) run.Runner {
	processes := process.New(process.Options{
		Log: log, Launcher: d.launcher(), Args: []string{"launch"}, Dir: filepath.Join(d.state.Path(), "run"),
	})
	d.processes = processes
	boxes := containers.New(containers.Options{
		Log: log, Sockets: e.Sockets, Owner: d.ownerID(), State: d.state.Path(), Changed: e.Forget,
	})
	return func(a *plan.App) run.Runner {
		if a.Image != "" {
			return boxes
		}
		return processes
	}
}

// ownerFile holds the id by which the containers of this state folder are told from those of others.
const ownerFile = "owner"

// ownerID reads the id, or makes one, when it is first asked for.
func (d *Daemon) ownerID() func() (string, error) {
	var mu sync.Mutex
	var id string
	return func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if id != "" {
			return id, nil
		}
		data, err := d.state.Read(ownerFile)
		if text := strings.TrimSpace(string(data)); err == nil && text != "" {
			id = text
			return id, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		var made [16]byte
		_, _ = rand.Read(made[:]) // never fails
		text := hex.EncodeToString(made[:])
		if err := d.state.Write(ownerFile, []byte(text+"\n")); err != nil {
			return "", err
		}
		id = text
		return id, nil
	}
}

// launcher is our own program, also when its file has been replaced or removed since.
func (d *Daemon) launcher() string {
	if runtime.GOOS == "linux" || runtime.GOOS == "android" {
		return "/proc/self/exe"
	}
	return d.o.Program
}
