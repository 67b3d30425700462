package containers

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quaymaster/quaymaster/internal/apps/run"
	"github.com/quaymaster/quaymaster/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is an Output.
type lines struct {
	mu   sync.Mutex
	list []string
	at   []time.Time
}

func (l *lines) Line(at time.Time, stderr bool, text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stream := "1"
	if stderr {
		stream = "2"
	}
	l.list, l.at = append(l.list, stream+" "+string(text)), append(l.at, at)
}

func frame(stream byte, text string) []byte {
	b := []byte{stream, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], uint32(len(text)))
	return append(b, text...)
}

// Whatever a stream is cut at, the lines of the two halves together are those of the whole, also where the engine tells
// seconds alone and lines are alike.
func TestA15_OutputGoesOnWhereItWasCut(t *testing.T) {
	var all [][]byte
	var want []string
	for second := range 4 {
		for n := range 7 {
			stamp := time.Unix(1_700_000_000+int64(second), 0).UTC().Format(time.RFC3339)
			if second == 2 {
				stamp = time.Unix(1_700_000_002, int64(n)*1000).UTC().Format(time.RFC3339Nano)
			}
			stream := byte(1 + n%2)
			text := "the same"
			if n == 3 { // a line in three parts, with nothing of the other stream in between
				for _, part := range []string{"one ", "two ", "three\n"} {
					all = append(all, frame(stream, stamp+" "+part))
				}
				text = "one two three"
			} else {
				all = append(all, frame(stream, stamp+" "+text+"\n"))
			}
			want = append(want, fmt.Sprintf("%d %s", stream, text))
		}
	}
	for cut := range len(all) + 1 {
		whole := &lines{}
		first := follower{out: whole.Line}
		if err := first.read(bytes.NewReader(bytes.Join(all[:cut], nil))); err != nil {
			t.Fatal(err)
		}
		second := follower{out: whole.Line} // another daemon, which knows the time of the newest line that was kept
		if len(whole.at) > 0 {
			second.newest = whole.at[len(whole.at)-1]
		}
		since := second.newest.Truncate(time.Second)
		rest := slices.DeleteFunc(slices.Clone(all), func(f []byte) bool {
			word, _, _ := strings.Cut(string(f[8:]), " ")
			at, err := time.Parse(time.RFC3339Nano, word)
			return err != nil || at.Before(since)
		})
		if err := second.read(bytes.NewReader(bytes.Join(rest, nil))); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(whole.list, want) {
			t.Fatalf("cut at %d:\n%q\nwant\n%q", cut, whole.list, want)
		}
		if !slices.IsSortedFunc(whole.at, time.Time.Compare) {
			t.Fatalf("times are not in order: %v", whole.at)
		}
	}
}

func TestOutputIsBounded(t *testing.T) {
	got := &lines{}
	f := follower{out: got.Line}
	long := strings.Repeat("x", 3*maxLine)
	if err := f.read(bytes.NewReader(slices.Concat(frame(1, "2024-01-01T00:00:00Z "+long+"\n"), frame(2, "2024-01-01T00:00:01Z after\n")))); err != nil {
		t.Fatal(err)
	}
	if n := len(got.list); n < 2 || len(got.list[0]) > maxLine+200 || got.list[n-1] != "2 after" {
		t.Errorf("%d lines, the first of %d bytes, the last %.20q", n, len(got.list[0]), got.list[n-1])
	}
	for k := range 1000 { // parts without an end
		if err := f.read(bytes.NewReader(frame(1, fmt.Sprintf("2024-01-01T00:00:02.%09dZ %s", k+1, strings.Repeat("y", 1000))))); err != nil {
			t.Fatal(err)
		}
		if n := len(f.parts[0]); n > maxLine {
			t.Fatalf("%d bytes are kept", n)
		}
	}
	for _, bad := range []string{"\x03\x00\x00\x00\x00\x00\x00\x01x", "\x01\x01\x00\x00\x00\x00\x00\x01x", "\x01\x00\x00\x00\xff\xff\xff\xffx", "HTTP/1.1 200 OK"} {
		if err := f.read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken for output", bad)
		}
	}
}

func FuzzOutput(f *testing.F) {
	f.Add(append(frame(1, "2024-01-01T00:00:00Z text\n"), frame(2, "no time")...))
	f.Fuzz(func(t *testing.T, text []byte) {
		total := 0
		l := follower{out: func(_ time.Time, _ bool, line []byte) {
			if total += len(line); len(line) > 2*maxLine {
				t.Errorf("a line of %d bytes", len(line))
			}
		}}
		_ = l.read(bytes.NewReader(text))
		l.flush()
		if total > len(text) {
			t.Errorf("%d bytes came of %d", total, len(text))
		}
	})
}

// Refusals as podman 4 and 5, docker 20 to 28, and their helpers word them.
func TestA19_WordsOfEnginesForAPortThatIsTaken(t *testing.T) {
	const port = 32100
	for text, want := range map[string]bool{
		"driver failed programming external connectivity on endpoint web (0123): Bind for 127.0.0.1:32100 failed: port is already allocated":                                                                    true,
		"driver failed programming external connectivity on endpoint web (0123): Error starting userland proxy: listen tcp4 127.0.0.1:32100: bind: address already in use":                                      true,
		"failed to set up container networking: driver failed programming external connectivity on endpoint web (0123): failed to bind host port for 127.0.0.1:32100:172.17.0.2:80/tcp: address already in use": true,
		"Ports are not available: exposing port TCP 127.0.0.1:32100 -> 127.0.0.1:0: listen tcp 127.0.0.1:32100: bind: Only one usage of each socket address":                                                    true,
		"cannot listen on the TCP port: listen tcp4 127.0.0.1:32100: bind: address already in use":                                                                                                              true,
		"rootlessport listen tcp 127.0.0.1:32100: bind: address already in use":                                                                                                                                 true,
		"error from slirp4netns while setting up port redirection: map[desc:bad request: add_hostfwd: slirp_add_hostfwd failed]":                                                                                true,
		"pasta failed with exit code 1:\nFailed to bind port 32100 (Address already in use) for option '-t 127.0.0.1/32100-32100:80-80', exiting":                                                               true,
		"netavark: unable to start container: something went wrong with the request: \"proxy already running\"\n":                                                                                               true,

		"failed to set up container networking: listen tcp4 127.0.0.1:9999: bind: address already in use":                               false,
		"netavark: error while applying dns entries: failed to bind udp listener on 10.89.0.1:53: Address already in use (os error 98)": false,
		"runc create failed: unable to start container process: exec: \"/nothing\": stat /nothing: no such file or directory":           false,
		"no space left on device": false,
	} {
		if _, got := portTaken(&saidError{text: text}, port); got != want {
			t.Errorf("%v: %s", got, text)
		}
	}
	if _, got := portTaken(errors.New("address already in use"), port); got {
		t.Error("what no engine has said is taken for its words")
	}
}

// engineOn is a server on a unix socket. It stands for engines that misbehave.
func engineOn(t *testing.T, serve http.HandlerFunc) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qm-boxes-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/e.sock")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: func() http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/_ping") {
				w.Header().Set("Api-Version", "1.44")
				return
			}
			serve(w, r)
		}
	}()}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return dir + "/e.sock"
}

func runner(sockets ...string) *Runner {
	return New(Options{
		Sockets: func(plan.EngineSettings) []string { return sockets },
		Owner:   func() (string, error) { return "me", nil }, State: "/state",
	})
}

var app = &plan.App{Name: "web", Image: "x:1", Engine: plan.EngineSettings{Pull: "never"}, Socket: "tcp"}

const someID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func adopt(t *testing.T, r *Runner, socket string) run.Instance {
	t.Helper()
	data, _ := json.Marshal(data{Socket: socket, Name: "quaymaster-web", Port: 1, Inside: 1})
	i, err := r.Adopt(t.Context(), run.Record{Container: someID, Started: time.Now(), Data: data}, &lines{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Leave)
	return i
}

// An engine that hangs holds up nobody for longer than its time, and figures for no time at all.
func TestA15_EngineThatHangs(t *testing.T) {
	t.Parallel()
	socket := engineOn(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	r := runner(socket)
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if errs := r.Check(ctx, app); len(errs) != 1 {
		t.Errorf("%v", errs)
	}
	var checks sync.WaitGroup
	checks.Go(func() {
		start := time.Now()
		errs := r.Check(t.Context(), app)
		var away *run.AwayError
		if len(errs) != 1 || !errors.As(errs[0], &away) || !strings.Contains(away.Text, "no answer within 5s") || time.Since(start) < askTime {
			t.Errorf("%v after %v", errs, time.Since(start))
		}
	})
	defer checks.Wait()
	i := adopt(t, r, socket) // after askTime
	why := make(chan error, 10)
	i.(run.Sighted).Sight(func(err error) { why <- err })
	if err := <-why; err == nil || !strings.Contains(err.Error(), socket) {
		t.Errorf("%v", err)
	}
	if _, err := i.Stats(); err == nil {
		t.Error("it has figures")
	}
	ctx, stop = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := i.Stop(ctx, plan.AppStop{Signal: "TERM", Timeout: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// ours is what an engine says of a container of ours.
func ours(state string) string {
	return `{"Id":"` + someID + `","State":{` + state + `},"Config":{"Labels":{"io.quaymaster.app":"web","io.quaymaster.owner":"me"}}}`
}

// Figures that an engine does not come to tell hold up nobody who looks at them.
func TestA15_FiguresThatDoNotCome(t *testing.T) {
	t.Parallel()
	socket := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/json") {
			_, _ = io.WriteString(w, ours(`"Status":"running","Running":true,"Pid":1`))
			return
		}
		<-r.Context().Done()
	})
	i := adopt(t, runner(socket), socket)
	start := time.Now()
	for range 100 {
		if _, err := i.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < statsWait || took > 3*time.Second {
		t.Errorf("a hundred looks took %v", took)
	}
}

// A container that is paused, and whose engine does not let it be signalled, is woken for that.
func TestPausedContainerIsWokenToEnd(t *testing.T) {
	t.Parallel()
	var did lines
	var awake, killed atomic.Bool
	ended := make(chan struct{})
	socket := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		_, what, _ := strings.Cut(r.URL.Path, someID)
		switch w.Header().Set("Content-Type", "application/json"); {
		case what == "/json" && killed.Load():
			_, _ = io.WriteString(w, ours(`"Status":"exited","ExitCode":143`))
		case what == "/json":
			_, _ = io.WriteString(w, ours(fmt.Sprintf(`"Status":"paused","Running":true,"Pid":2,"Paused":%v`, !awake.Load())))
		case what == "/kill" && !awake.Load():
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"message":"it is paused"}`)
		case what == "/kill":
			did.Line(time.Now(), false, []byte(r.URL.Query().Get("signal")))
			killed.Store(true)
			close(ended)
		case what == "/unpause":
			awake.Store(true)
		case what == "/wait":
			select {
			case <-ended:
				_, _ = io.WriteString(w, `{"StatusCode":143}`)
			case <-r.Context().Done():
			}
		case r.Method == "DELETE":
			did.Line(time.Now(), false, []byte("removed"))
		}
	})
	i := adopt(t, runner(socket), socket)
	if err := i.Stop(t.Context(), plan.AppStop{Signal: "TERM", Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(did.list); got != "[1 SIGTERM 1 removed]" || i.Exit().String() != "signal 15 (terminated)" {
		t.Errorf("%s, %v", got, i.Exit())
	}
}

// What an engine answers is not believed: a container without our labels is neither stopped nor removed, whatever it is
// called, and answers without an end or a sense are refused.
func TestA15_EngineThatLies(t *testing.T) {
	t.Parallel()
	var touched atomic.Int32
	answer := atomic.Pointer[string]{}
	socket := engineOn(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "DELETE" || strings.HasSuffix(r.URL.Path, "/kill") || strings.HasSuffix(r.URL.Path, "/stop") {
			touched.Add(1)
		}
		_, _ = io.WriteString(w, *answer.Load())
	})
	r := runner(socket)
	say := func(text string) { answer.Store(&text) }
	stranger := `{"Id":"` + someID + `","Names":["/quaymaster-web"],"State":{"Status":"running"},"Config":{"Labels":{"io.quaymaster.app":"web","io.quaymaster.owner":"another"}}}`
	say(stranger)
	if err := r.remove(t.Context(), socket, someID); err == nil || !strings.Contains(err.Error(), "is not ours") {
		t.Errorf("%v", err)
	}
	data, _ := json.Marshal(data{Socket: socket})
	if _, err := r.Adopt(t.Context(), run.Record{Container: someID, Data: data}, &lines{}); !errors.Is(err, run.ErrGone) {
		t.Errorf("a stranger is adopted: %v", err)
	}
	say(`[{"Id":"` + someID + `","Labels":{"io.quaymaster.app":"web","io.quaymaster.owner":"another"}}, {"Id":"../../x","Labels":{"io.quaymaster.app":"web","io.quaymaster.owner":"me"}}]`)
	if err := r.Clear(t.Context(), app); err != nil {
		t.Error(err)
	}
	for _, text := range []string{`{}`, `{"Id":"x","State":{},"Config":{}}`, `[`, strings.Repeat(" ", 1000), `{"State":{"Status":"` + strings.Repeat("x", 1<<20) + `"}}`} {
		say(text)
		if box, err := r.inspect(t.Context(), socket, someID); err == nil {
			t.Errorf("%.60q is taken for a container: %+v", text, box.ID)
		}
	}
	for _, rec := range []run.Record{{}, {Container: "../x", Data: data}, {Container: someID}, {Container: someID, Data: []byte("[")}} {
		if _, err := r.Adopt(t.Context(), rec, &lines{}); !errors.Is(err, run.ErrGone) {
			t.Errorf("%+v: %v", rec, err)
		}
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("%d times something was done to what is not ours", n)
	}
}

// The engine that has the image is the one that runs it; one that is away counts where no other answers.
func TestEngineThatHasTheImage(t *testing.T) {
	t.Parallel()
	image := func(there bool) string {
		return engineOn(t, func(w http.ResponseWriter, r *http.Request) {
			if there && strings.Contains(r.URL.Path, "/images/") {
				_, _ = io.WriteString(w, `{"Config":{"Env":["SET=1"]}}`)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"no such thing"}`)
		})
	}
	none, one := image(false), image(true)
	gone := none + ".gone"
	if got, err := runner(gone, none, one).find(t.Context(), app); err != nil || got.engine.socket != one || got.env == nil {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := runner(gone, none).find(t.Context(), app); err != nil || got.engine.socket != none || got.env != nil {
		t.Errorf("%+v %v", got, err)
	}
	var away *run.AwayError
	if _, err := runner(gone).find(t.Context(), app); !errors.As(err, &away) || !strings.Contains(away.Text, gone) {
		t.Errorf("%v", err)
	}
	if _, err := runner().find(t.Context(), app); !errors.As(err, &away) || !strings.Contains(away.Text, "systemctl enable --now podman.socket") {
		t.Errorf("%v", err)
	}
	needs := *app
	needs.EnvRequired = []string{"SET", "OTHER"}
	if errs := runner(one).Check(t.Context(), &needs); len(errs) != 1 || !strings.Contains(errs[0].Error(), "OTHER is not set") {
		t.Errorf("%v", errs)
	}
}
