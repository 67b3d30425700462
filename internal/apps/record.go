package apps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	recordFile  = "apps.json"
	recordAgain = 2 * time.Second // after a write that the disk did not take
)

// appRecord is what the next daemon needs to know of an app.
type appRecord struct {
	Held      bool         `json:"held,omitempty"` // stopped by hand
	Restarts  int          `json:"restarts,omitempty"`
	Instances []instRecord `json:"instances,omitempty"`
}

// instRecord is what it needs to find an instance.
type instRecord struct {
	Run    run.Record   `json:"run"`
	Key    string       `json:"key"` // of the entry that it was started from
	Image  string       `json:"image,omitempty"`
	Leased bool         `json:"leased,omitempty"`
	Socket string       `json:"socket"`
	Port   uint16       `json:"port,omitempty"`
	Path   string       `json:"path,omitempty"`
	Ready  bool         `json:"ready,omitempty"`
	Stop   plan.AppStop `json:"stop"`
}

// runKey is equal for two entries that one instance can serve both of.
func runKey(a *plan.App) string {
	text, _ := json.Marshal([]any{
		a.Command, a.Image, a.ContainerPort, a.Dir, a.User, a.Env, a.InheritEnv, a.Port, a.Socket, a.Limits,
	})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

// records keeps the records of all apps in one file.
type records struct {
	store Store
	log   *slog.Logger
	wake  chan struct{}

	saving sync.Mutex // held from the look to the end of the write; taken before mu
	mu     sync.Mutex // guards what follows
	now    map[string]*appRecord
	frozen bool // the file is another process's
	dirty  bool
}

func (r *records) start(store Store, log *slog.Logger) {
	r.store, r.log, r.wake = store, log, make(chan struct{}, 1)
	r.now = make(map[string]*appRecord)
}

// load reads the file.
func (r *records) load() map[string]*appRecord {
	data, err := r.store.Read(recordFile)
	now := make(map[string]*appRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return now
	}
	if err == nil {
		err = json.Unmarshal(data, &now)
	}
	if err != nil {
		r.log.Error("records of apps cannot be read: those that still run are ended", "file", recordFile, "err", err)
		return make(map[string]*appRecord)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = maps.Clone(now)
	return now
}

// set makes another record of an app; nil is none.
func (r *records) set(name string, rec *appRecord) {
	r.mu.Lock()
	if rec == nil {
		delete(r.now, name)
	} else {
		r.now[name] = rec
	}
	r.dirty = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes what has changed, until ctx ends.
func (r *records) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			_ = r.save()
			return
		case <-r.wake:
		case <-timer.C:
		}
		err := r.save()
		if err != nil {
			timer.Reset(recordAgain)
			if !told {
				r.log.Error("records of apps cannot be written: after a crash those that run are not found again", "err", err)
			}
		}
		told = err != nil
	}
}

// save writes the records if they are not what the file says.
func (r *records) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	if !r.dirty || r.frozen {
		r.mu.Unlock()
		return nil
	}
	data, err := json.Marshal(r.now)
	r.dirty = false
	r.mu.Unlock()
	if err == nil {
		err = r.store.Write(recordFile, data)
	}
	if err != nil {
		r.mu.Lock()
		r.dirty = true
		r.mu.Unlock()
	}
	return err
}

// freeze writes what there is, and then nothing more until thaw.
func (r *records) freeze(on bool) error {
	err := r.save()
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = on
	return err
}

// keepRecord notes what the next daemon needs to know of this app.
func (a *app) keepRecord() {
	rec := &appRecord{Held: a.held, Restarts: a.restarts}
	for _, i := range append([]*instance{a.cur, a.next}, a.old...) {
		if i == nil || i.run == nil {
			continue
		}
		rec.Instances = append(rec.Instances, instRecord{
			Run: i.run.Record(), Key: i.key, Image: i.spec.Image, Leased: i.lease != nil, Socket: i.spec.Socket, Port: i.at.Port, Path: i.at.Path,
			Ready: i.ready, Stop: i.spec.Stop,
		})
	}
	rec.Instances = append(rec.Instances, a.adopt...)
	a.s.records.set(a.name, rec)
}

// Has reports whether a port that is leased to an app may be held by an instance that an earlier daemon has started. It is
// asked before the first plan is committed.
func (s *Apps) Has(name string, port uint16) bool {
	s.recover()
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.apps[name]
	if a == nil {
		return false
	}
	if slices.ContainsFunc(s.inherited, func(k Socket) bool { return k.App == name && k.At.Port == port }) {
		return true // it is bound by us, in another way
	}
	for _, i := range a.found {
		if i.Leased && (i.Port == port || i.Port == 0) { // 0: nobody knows
			return true
		}
	}
	return false
}

// recover makes an app of every record, once.
func (s *Apps) recover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recovered {
		return
	}
	s.recovered = true
	known := s.records.load()
	for name, lost := range s.lost(known) {
		rec := known[name]
		if rec == nil {
			rec = &appRecord{}
		}
		rec.Instances = append(slices.Clone(rec.Instances), lost...)
		known[name] = rec
	}
	for _, k := range s.inherited {
		if known[k.App] == nil {
			known[k.App] = &appRecord{}
		}
	}
	for name, rec := range known {
		a := s.newApp(name)
		a.found = rec.Instances
		a.post(func() {
			a.held, a.restarts, a.adopt = rec.Held, rec.Restarts, rec.Instances
		})
	}
	for _, k := range s.inherited {
		a := s.apps[k.App]
		a.post(func() { a.sock = &socket{k.FD, k.At} })
	}
}

// lost are instances that were begun and not noted, by app: their daemon was killed in between. They are found by what they
// have open, and ended, since nobody knows what of.
func (s *Apps) lost(known map[string]*appRecord) map[string][]instRecord {
	r, can := s.opt.Runner(&plan.App{}).(interface {
		Lost(known []run.Record) map[string][]run.Record
	})
	if !can {
		return nil
	}
	var noted []run.Record
	for _, rec := range known {
		for _, i := range rec.Instances {
			noted = append(noted, i.Run)
		}
	}
	out := make(map[string][]instRecord)
	for name, list := range r.Lost(noted) {
		for _, rec := range list {
			out[name] = append(out[name], instRecord{Run: rec, Leased: true})
		}
	}
	return out
}

// recall looks for the instances of an earlier daemon.
func (a *app) recall() {
	if len(a.adopt) == 0 || a.recalling || !a.begins {
		return
	}
	a.recalling = true
	list := a.adopt
	a.aside(func(ctx context.Context) {
		found := make([]*instance, len(list))
		errs := make([]error, len(list))
		for n, rec := range list {
			found[n], errs[n] = a.adoptOne(ctx, rec)
		}
		a.post(func() { a.recalled(list, found, errs) })
	})
}

// adoptOne finds one instance.
func (a *app) adoptOne(ctx context.Context, rec instRecord) (*instance, error) {
	spec := &plan.App{Name: a.name, Image: rec.Image, Socket: rec.Socket, Stop: rec.Stop}
	r := a.s.opt.Runner(spec)
	if r == nil {
		return nil, run.ErrGone
	}
	i := &instance{spec: spec, key: rec.Key, tap: a.out.tap(spec), ready: rec.Ready, adopted: true}
	i.at = plan.TCPAddr(loopback, rec.Port)
	if rec.Path != "" {
		i.at = plan.Addr{Network: plan.Unix, Path: rec.Path}
	}
	var err error
	if i.run, err = r.Adopt(ctx, rec.Run, i.tap); err != nil {
		return nil, err
	}
	i.began = i.run.Record().Started
	if rec.Leased {
		if i.lease, err = a.s.opt.Ports.Lease(ctx, a.name, false); err != nil || i.lease.Port() != rec.Port {
			a.s.opt.Log.Warn("port of an app that was found again is not leased to it", "app", a.name, "port", rec.Port, "err", err)
			i.lease = nil
		}
	}
	return i, nil
}

// recalled takes over what was found. What cannot be asked about now is asked about again.
func (a *app) recalled(list []instRecord, found []*instance, errs []error) {
	a.recalling = false
	var left []instRecord
	for n, i := range found {
		switch {
		case errs[n] == nil:
			a.takeOver(i)
		case errors.Is(errs[n], run.ErrGone):
			a.out.note("gone while quaymaster was away")
			if list[n].Leased && a.sock == nil && (list[n].Port != 0 || a.want != nil && a.want.Port == 0 && a.want.Socket != "unix") {
				a.regain()
			}
		default:
			a.why = "cannot be asked about: " + errs[n].Error()
			left = append(left, list[n])
		}
	}
	a.adopt = left
	a.keepRecord()
	if a.want != nil && a.want.Start != "always" && a.cur == nil && len(left) == 0 {
		a.on = false
	}
}

// regain holds the port of an instance that ended while nobody looked.
func (a *app) regain() {
	a.portWork(func(ctx context.Context) {
		if l, err := a.s.opt.Ports.Lease(ctx, a.name, false); err == nil {
			_ = reclaim(ctx, l) // one that is busy says so where leases are listed
		}
	})
}

// reclaimWithin is how long the port of an app that has ended may still be busy: what is left of a process that was killed lets
// go of it a moment later.
const reclaimWithin = time.Second

// reclaim holds the port of an app that has ended.
func reclaim(ctx context.Context, l Lease) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(reclaimWithin); ; {
		err := l.Reclaim(ctx)
		if err == nil || time.Now().After(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// takeOver makes an instance that was found the app's. Of several the first that fits the entry is the one that stays.
func (a *app) takeOver(i *instance) {
	if a.want != nil {
		if i.key == runKey(a.want) {
			i.spec = a.want
		} else { // it serves until the new entry does, and is judged by it
			copied := *a.want
			copied.Image, copied.Socket, copied.Stop = i.spec.Image, i.spec.Socket, i.spec.Stop
			i.spec = &copied
		}
	}
	if i.lease != nil {
		a.lease = i.lease
	}
	a.out.note("found again")
	a.s.opt.Log.Info("app found again", "app", a.name, i.who(), "address", i.at.String())
	a.watch(i)
	if a.cur == nil && a.want != nil {
		a.cur = i
		a.probe(i)
		return
	}
	i.phase = probing
	a.retire(i)
}
