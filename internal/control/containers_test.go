package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// box is a container that asks for a host.
func box(name, host string) labels.Container {
	return labels.Container{
		Name: name, Engine: "podman", Created: int64(name[0]), Labels: map[string]string{labels.Enable: "true", "quaymaster.host": host},
		Ports: []labels.Port{{Number: 80, At: netip.MustParseAddrPort("127.0.0.1:8000")}},
	}
}

// picky cannot have some ports.
type picky struct {
	part
	taken map[uint16]bool
}

func (p *picky) Prepare(ctx context.Context, next *plan.Plan) (plan.Step, error) {
	for _, port := range next.Ports {
		if p.taken[port.Addr.Port] {
			return nil, errors.New("port " + port.Addr.String() + " is taken")
		}
	}
	return p.part.Prepare(ctx, next)
}

// labelRig is a rig whose second part cannot have some ports.
func labelRig(t *testing.T, text string, taken ...uint16) (*rig, *picky) {
	t.Helper()
	r := &rig{t: t, file: filepath.Join(t.TempDir(), "q.yaml"), book: &book{}, events: make(chan string, 1000)}
	r.a = &part{name: "a", book: r.book}
	p := &picky{part: part{name: "b", book: r.book}, taken: map[uint16]bool{}}
	for _, n := range taken {
		p.taken[n] = true
	}
	r.write(text)
	r.loop = New(Options{
		Config: r.file, Log: slog.New(slog.DiscardHandler), Followers: []Named{{"a", r.a}, {"b", p}},
		Event: func(kind, _, _ string) { r.events <- kind },
		Save:  func(*config.Layer) error { r.book.add("save"); return nil },
	})
	first, err := Load(nil, r.file, nil)
	if err == nil {
		err = r.loop.Start(t.Context(), first)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.loop.Freeze(ErrFrozen) })
	r.book.take()
	return r, p
}

func (r *rig) contain(list ...labels.Container) int {
	r.t.Helper()
	left, err := r.loop.Containers(r.t.Context(), list)
	if err != nil {
		r.t.Fatal(err)
	}
	return left
}

const anyPort = "engine: {ports: [8080, \"9000-9010\"]}\n"

func TestContainers_TheirRoutesComeAndGoWithoutAnEdit(t *testing.T) {
	r, _ := labelRig(t, anyPort+one("f"))
	before := r.loop.Now()
	res := r.reload(ReloadOptions{Confirm: time.Hour})
	if left := r.contain(box("a", "http://a.test"), box("b", "http://b.test:9001")); left != 0 {
		t.Errorf("%d are left out", left)
	}
	r.want("a@podman b@podman f")
	now := r.loop.Now()
	if now.Revision != before.Revision || now.Revision != res.Revision || strings.Contains(r.book.take(), "save") {
		t.Error("containers are no configuration, and are not kept as one")
	}
	if r.loop.Unconfirmed().IsZero() {
		t.Error("a container has confirmed a reload")
	}
	if left := r.contain(box("a", "http://a.test"), box("b", "http://b.test:9001")); left != 0 || r.book.take() != "" {
		t.Error("the same list makes a new plan")
	}
	if res, err := r.loop.Edit(t.Context(), now.Revision, func(*config.Layer) error { return nil }); err != nil || len(res.Changes) > 0 {
		t.Errorf("an edit that changes nothing: %v %v", res.Changes, err)
	}
	r.contain(box("b", "http://b.test:9001"))
	r.want("b@podman f")
	if err := r.loop.Confirm(); err != nil {
		t.Error(err)
	}
	r.write(one("f") + "engine: {labels: false}\n")
	r.reload(ReloadOptions{})
	r.want("f")
	r.write(anyPort + one("f"))
	r.reload(ReloadOptions{})
	r.want("b@podman f")
}

func TestContainers_OneThatCannotBeHadIsLeftOutAlone(t *testing.T) {
	r, p := labelRig(t, anyPort+one("f"), 9001, 9002)
	r.contain(box("a", "http://a.test"))
	a := r.loop.Now().Plan.Route("a@podman")
	left := r.contain(box("a", "http://a.test"), box("b", "http://b.test:9001"), box("c", "http://c.test"), box("d", "http://d.test:9002"))
	r.want("a@podman c@podman f")
	if now := r.loop.Now(); left != 2 || len(now.Refused) != 2 || now.Refused[0].Container != "container b (podman)" || !strings.Contains(now.Refused[0].Message, "port :9001 is taken") {
		t.Errorf("%d are left out: %+v", left, now.Refused)
	}
	if r.loop.Now().Plan.Route("a@podman") != a {
		t.Error("a route that did not change is another one")
	}
	r.reload(ReloadOptions{}) // is not refused for them
	r.want("a@podman c@podman f")
	if len(r.loop.Now().Refused) != 2 {
		t.Errorf("after a reload: %+v", r.loop.Now().Refused)
	}
	p.taken[9001] = false
	if err := r.edit("e"); err != nil { // with which they are tried again
		t.Fatal(err)
	}
	r.want("a@podman b@podman c@podman e f")
	r.wait("label.refused")
}

// A reload that lets a container have a port which is taken is followed without that container.
func TestContainers_NoReloadIsRefusedForThem(t *testing.T) {
	r, p := labelRig(t, one("f"), 9001)
	r.contain(box("a", "http://a.test"), box("b", "http://b.test:9001"))
	if now := r.loop.Now(); len(now.Refused) != 1 || !strings.Contains(now.Refused[0].Message, "does not let labels have port 9001") {
		t.Fatalf("%+v", now.Refused)
	}
	r.write(anyPort + one("f", "g"))
	r.reload(ReloadOptions{})
	r.want("a@podman f g")
	if now := r.loop.Now(); now.Error != "" || len(now.Refused) != 1 || !strings.Contains(now.Refused[0].Message, "port :9001 is taken") {
		t.Errorf("%q %+v", now.Error, now.Refused)
	}
	p.taken[9001] = false
	if left, err := r.loop.Containers(t.Context(), []labels.Container{box("a", "http://a.test"), box("b", "http://b.test:9001")}); err != nil || left != 0 {
		t.Errorf("%d %v", left, err)
	}
	r.want("a@podman b@podman f g")
}

// What an edit takes from a container is said in its answer.
func TestContainers_AnEditWinsAndSaysOverWhom(t *testing.T) {
	r, _ := labelRig(t, anyPort+one("f"))
	r.contain(box("a", "http://a.test"))
	res, err := r.loop.Edit(t.Context(), "*", func(l *config.Layer) error {
		return l.Put("mine", []byte(`{"match":{"ports":[8080],"domains":["a.test"]},"action":{"respond":{"status":200}}}`))
	})
	if err != nil || len(res.Warnings) != 1 || res.Warnings[0].File != "container a (podman)" || res.Warnings[0].Path != "quaymaster.host" {
		t.Errorf("%+v %v", res.Warnings, err)
	}
	r.want("f mine")
	if _, err := r.loop.Edit(t.Context(), "*", func(l *config.Layer) error { l.Delete("mine"); return nil }); err != nil {
		t.Fatal(err)
	}
	r.want("a@podman f")
}

// A container that comes and goes with a bad label is told of once, not each time.
func TestContainers_ARefusalIsNotRepeated(t *testing.T) {
	r, _ := labelRig(t, anyPort+one("f"))
	for range 50 {
		r.contain(box("a", "no host"), box("b", "http://b.test"))
		r.contain(box("b", "http://b.test"))
	}
	r.contain(box("a", "no host"), box("c", "another one"))
	n := 0
	for len(r.events) > 0 {
		if <-r.events == "label.refused" {
			n++
		}
	}
	if n != 2 || len(r.loop.Now().Refused) != 2 {
		t.Errorf("told %d times; refused now: %+v", n, r.loop.Now().Refused)
	}
}

// Three that cannot be had are found among two hundred without trying each.
func TestContainers_ThoseThatCannotBeHadAreFoundFast(t *testing.T) {
	r, _ := labelRig(t, anyPort+one("f"), 9001)
	list := make([]labels.Container, 0, 200)
	for i := range 200 {
		at := fmt.Sprintf("http://h%d.test", i)
		if i%70 == 3 {
			at += ":9001"
		}
		list = append(list, box(fmt.Sprint("c", i), at))
	}
	if left := r.contain(list...); left != 3 || len(r.loop.Now().Plan.Routes) != 198 {
		t.Errorf("%d are left out, %d routes", left, len(r.loop.Now().Plan.Routes))
	}
	if n := strings.Count(r.book.take(), "prepare-a"); n > 60 {
		t.Errorf("%d tries", n)
	}
}
