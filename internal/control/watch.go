package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// A burst of writes is one change: it is taken after quiet without another write, and after patience at the latest.
// poll finds what the kernel does not tell (a bind-mounted file that was replaced, a network file system).
const (
	quiet    = 100 * time.Millisecond
	patience = 500 * time.Millisecond
	poll     = 5 * time.Second
)

// Watch reloads whenever the bytes of the files have changed, until ctx ends. A file that cannot be loaded changes
// nothing and is tried again when it changes again.
func (l *Loop) Watch(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	for _, f := range l.Now().Files {
		// The folder, not the file: editors and config maps replace files by renaming others over them.
		if err := w.Add(filepath.Dir(f)); err != nil {
			l.o.Log.Warn("folder cannot be watched; its files are compared every few seconds", "path", filepath.Dir(f), "err", err)
		}
	}
	seen := revision(l.Now().sources, nil) // not the files of now: what changed since the start counts
	tick := time.NewTicker(poll)
	defer tick.Stop()
	settle := time.NewTimer(quiet) // what changed before the folders were watched is no event
	defer settle.Stop()
	var first time.Time // of the burst under way
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			settle.Reset(max(0, min(quiet, patience-now.Sub(first))))
		case err := <-w.Errors:
			l.o.Log.Warn("watching the configuration", "err", err)
		case <-tick.C:
			// Half a file may be there: what differs waits for quiet like any other write.
			if now := l.fingerprint(); first.IsZero() && now != seen && now != "" {
				first = time.Now()
				settle.Reset(quiet)
			}
		case <-settle.C:
			first = time.Time{}
			settle.Reset(time.Hour)
			now := l.fingerprint()
			if now == seen || now == "" {
				continue
			}
			seen = now
			l.catchUp(ctx, now)
		}
	}
}

// catchUp reloads unless the files of that fingerprint are in force already: a reload that was asked for may have been
// first, and another one would confirm it.
func (l *Loop) catchUp(ctx context.Context, now string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if in := l.Now(); in.Error != "" || revision(in.sources, nil) != now {
		_, _ = l.reload(ctx, ReloadOptions{}) // logged and kept for status
	}
}

// fingerprint changes when the bytes of a file do. A file that cannot be read is part of it. It is empty while every
// file is: somebody has truncated one and will go on writing.
func (l *Loop) fingerprint() string {
	files, err := config.FindFiles(l.o.Config)
	if err != nil {
		return err.Error()
	}
	sources, err := config.ReadFiles(files)
	if err != nil {
		return err.Error()
	}
	for _, s := range sources {
		if len(bytes.TrimSpace(s.Bytes)) > 0 {
			return revision(sources, nil)
		}
	}
	return ""
}

// revision names the bytes of a configuration. No API layer and an empty one are the same.
func revision(sources []config.Source, layer *config.Layer) string {
	h := sha256.New()
	var breath plan.Breath
	defer breath.End()
	for _, s := range sources {
		h.Write([]byte(s.Name))
		h.Write([]byte{0})
		for piece := range slices.Chunk(s.Bytes, 8<<10) {
			breath.Take()
			h.Write(piece)
		}
		h.Write([]byte{0})
	}
	if layer != nil && len(layer.Routes)+len(layer.Apps) > 0 {
		_ = json.NewEncoder(h).Encode(layer) // maps are written sorted, and a hash takes every write
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}
