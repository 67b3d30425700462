package engine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/engine/labels"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// odd is an engine with one container, which answers some questions in its own way.
type odd struct {
	lists  atomic.Int32
	labels string // JSON
	about  string // its security options, JSON; "" = as an engine with root
	ip     string // of the container; "" = far away
	broken atomic.Bool
	events http.HandlerFunc
}

func (o *odd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case ping(w, r, "1.44"):
	case strings.HasSuffix(path, "/info"):
		_, _ = io.WriteString(w, `{"SecurityOptions":["name=seccomp,profile=default"`+o.about+`]}`)
	case strings.HasSuffix(path, "/events"):
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		if o.events != nil {
			o.events(w, r)
		}
		<-r.Context().Done()
	case strings.HasSuffix(path, "/containers/json"):
		o.lists.Add(1)
		_, _ = io.WriteString(w, `[{"Id":"abc","Names":["/web"],"Created":7,"State":"running"}]`)
	case o.broken.Load():
		w.WriteHeader(http.StatusInternalServerError)
	default:
		_, _ = fmt.Fprintf(w, `{"Id":"abc","Name":"/web","Created":"2026-11-21T18:56:56.931929328Z","State":{"Status":"running","Running":true,"Health":{"Status":"healthy"}},"Config":{"Labels":%s,"ExposedPorts":{"80/tcp":{},"53/udp":{},"81/tcp":{}}},
			"HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"::","HostPort":"32768"},{"HostIp":"0.0.0.0","HostPort":"32768"}]},"Networks":{"far":{"IPAddress":"%s"}}}}`, o.labels, cmp.Or(o.ip, "203.0.113.7"))
	}
}

func watchOdd(t *testing.T, o *odd) (*Watch, *heard) {
	t.Helper()
	if o.labels == "" {
		o.labels = `{"quaymaster.enable":"true","other":"x"}`
	}
	return watchOf(t, plan.EngineSettings{Kind: "docker", Socket: engineOn(t, o.ServeHTTP)}, plan.LabelSettings{Enabled: true})
}

func event(action string) string {
	return `{"Type":"container","Action":"` + action + `","Actor":{"ID":"abc","Attributes":{}}}` + "\n"
}

func TestWatch_AContainerIsWhatItsEngineSays(t *testing.T) {
	_, h := watchOdd(t, &odd{})
	until(t, "it is found", func() bool { return h.names() == "web" })
	got, err := json.Marshal(h.last()[0])
	want := `{"Name":"web","Engine":"docker","Created":1795287416931929328,"Labels":{"quaymaster.enable":"true"},"TooLong":false,"Shares":false,` +
		`"Ports":[{"Number":80,"At":"0.0.0.0:32768"},{"Number":80,"At":"[::]:32768"},{"Number":81,"At":""}],` +
		`"Networks":[{"Name":"far","IP":"203.0.113.7","Near":false}],"Health":"healthy"}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

// TestWatch_AnAddressIsNearWhereTheEngineHasRoot: the same address is somebody else's where it has not.
func TestWatch_AnAddressIsNearWhereTheEngineHasRoot(t *testing.T) {
	own := interfaces()
	if len(own) == 0 {
		t.Skip("this machine has no interface but its loopback")
	}
	ip := own[0].Addr().Next().String()
	for about, want := range map[string]bool{"": true, `,"name=rootless"`: false} {
		_, h := watchOdd(t, &odd{about: about, ip: ip})
		until(t, "it is found", func() bool { return h.names() == "web" })
		if got := h.last()[0].Networks[0]; got.Near != want || got.IP.String() != ip {
			t.Errorf("%q: %+v", about, got)
		}
	}
}

// TestWatch_AFloodOfEventsIsAFewQuestions: thousands of events a second cost two lists a second, and nobody is told what is
// as it was.
func TestWatch_AFloodOfEventsIsAFewQuestions(t *testing.T) {
	var sent atomic.Int64
	o := &odd{events: func(w http.ResponseWriter, r *http.Request) {
		text := strings.Repeat(event("die")+event("start")+event("exec_create: x"), 10)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
			sent.Add(30)
		}
	}}
	began := time.Now()
	w, h := watchOdd(t, o)
	until(t, "it is found", func() bool { return h.names() == "web" })
	until(t, "thousands of events", func() bool { return sent.Load() > 20_000 && time.Since(began) > 2*time.Second })
	took := time.Since(began)
	if n := int(o.lists.Load()); n > int(took/patience)+4 || n < 3 {
		t.Errorf("%d lists in %v", n, took)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := w.Status(); len(h.lists) != 1 || s[0].Err != nil {
		t.Errorf("told %d times, %v", len(h.lists), s[0].Err)
	}
}

// TestWatch_AnEventWithoutAnEndIsCutOff: the stream is lost, what is known stays, and it is tried again.
func TestWatch_AnEventWithoutAnEndIsCutOff(t *testing.T) {
	var streams atomic.Int32
	var said atomic.Int64
	o := &odd{events: func(w http.ResponseWriter, _ *http.Request) {
		streams.Add(1)
		_, _ = io.WriteString(w, `{"Type":"container","Action":"`)
		for block := bytes.Repeat([]byte("x"), 64<<10); ; {
			n, err := w.Write(block)
			if streams.Load() == 1 {
				said.Add(int64(n))
			}
			if err != nil {
				return
			}
		}
	}}
	w, h := watchOdd(t, o)
	until(t, "it is tried again", func() bool { return streams.Load() > 1 })
	if n := said.Load(); n > maxAnswer+4<<20 { // what buffers hold
		t.Errorf("%d bytes were taken", n)
	}
	if s := w.Status(); h.names() != "web" || len(s) != 1 || s[0].Known != 1 {
		t.Errorf("%s %+v", h.names(), s)
	}
}

// TestWatch_AQuestionThatFailsTakesNothingAway: a container runs, and its engine cannot say more about it.
func TestWatch_AQuestionThatFailsTakesNothingAway(t *testing.T) {
	next := make(chan string)
	o := &odd{events: func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case action := <-next:
				_, _ = io.WriteString(w, event(action))
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}}
	_, h := watchOdd(t, o)
	until(t, "it is found", func() bool { return h.names() == "web" })
	o.broken.Store(true)
	lists := o.lists.Load()
	next <- "restart"
	until(t, "it is listed again", func() bool { return o.lists.Load() > lists+1 })
	if h.names() != "web" {
		t.Errorf("found %q", h.names())
	}
}

func TestWatch_LabelsThatAreTooLongAreNotKept(t *testing.T) {
	_, h := watchOdd(t, &odd{labels: `{"quaymaster.enable":"true","quaymaster.host":"` + strings.Repeat("a", maxText) + `"}`})
	until(t, "it is found", func() bool { return h.names() == "web" })
	c := h.last()[0]
	if _, refused := labels.Read(&c, false); len(c.Labels) > 0 || !c.TooLong || len(refused) != 1 {
		t.Errorf("%d labels, %v, %v", len(c.Labels), c.TooLong, refused)
	}
}

// TestWatch_SlowAnswersAreAskedForTogether: an engine that takes its time over each of hundreds of containers is followed
// all the same.
func TestWatch_SlowAnswersAreAskedForTogether(t *testing.T) {
	const many, slow = 160, 25 * time.Millisecond // one after the other: four seconds
	var now, most atomic.Int32
	socket := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case ping(w, r, "1.44"):
		case strings.HasSuffix(path, "/info"):
			_, _ = io.WriteString(w, `{}`)
		case strings.HasSuffix(path, "/events"):
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(path, "/containers/json"):
			list := []string{`{"Id":"` + strings.Repeat("f", maxID+1) + `","Names":["/long"],"State":"running"}`}
			for n := range many {
				list = append(list, fmt.Sprintf(`{"Id":"%012x","Names":["/c%03d"],"Created":7,"State":"running"}`, n, n))
			}
			_, _ = io.WriteString(w, "["+strings.Join(list, ",")+"]")
		default:
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(slow)
			now.Add(-1)
			health := "healthy"
			if strings.Contains(path, "/000000000000/") {
				health = strings.Repeat("h", 1<<20)
			}
			_, _ = fmt.Fprintf(w, `{"Id":"x","State":{"Status":"running","Running":true,"Health":{"Status":%q}},"Config":{"Labels":{"quaymaster.enable":"true"}}}`, health)
		}
	})
	_, h := watchOf(t, plan.EngineSettings{Kind: "docker", Socket: socket}, plan.LabelSettings{Enabled: true})
	until(t, "all are found", func() bool { return len(strings.Fields(h.names())) == many })
	if n := most.Load(); n < 2 || n > together {
		t.Errorf("%d were looked at at once", n)
	}
	if got := h.last()[0]; got.Name != "c000" || got.Health != "unknown" {
		t.Errorf("the first is %s, and its health %.20q", got.Name, got.Health)
	}
}
