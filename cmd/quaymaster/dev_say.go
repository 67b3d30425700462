package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/api"
)

// devSay prints what we say, and what several apps say side by side.
type devSay struct {
	mu    sync.Mutex // guards the writers: one line at a time
	out   io.Writer
	err   io.Writer
	color bool // of names
	names int  // that were given a color
	width int  // of names
}

func newDevSay(out, errs io.Writer) *devSay {
	f, ok := out.(*os.File)
	color := ok && isTerminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &devSay{out: out, err: errs, color: color, width: len("quaymaster")}
}

// isTerminal reports whether a file is a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// stdinWorks reports whether there is a standard input at all.
func stdinWorks() bool {
	_, err := os.Stdin.Stat()
	return err == nil
}

// note prints a line of ours.
func (s *devSay) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range strings.Split(s.plain(fmt.Sprintf(format, args...)), "\n") {
		if s.color {
			line = "\x1b[1mquaymaster\x1b[0m " + line
		} else {
			line = "quaymaster " + line
		}
		_, _ = fmt.Fprintln(s.err, line)
	}
}

// plain takes out what would move the cursor: names and errors may come from others.
func (s *devSay) plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
}

func (s *devSay) command(a *devApp, argv []string, source string) {
	line := strings.Join(argv, " ")
	if a.shown != "" {
		line = a.shown
	}
	s.note("%s: %s (%s), port %d", a.label, line, source, a.port)
}

func (s *devSay) ready(a *devApp, after time.Duration) {
	s.note("%s is ready after %s: %s", a.label, devSpan(after), a.url())
}

func devSpan(d time.Duration) string {
	if d < time.Minute {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// sayMissing says what is missing for the URLs to work everywhere.
func (d *devRun) sayMissing(ctx context.Context, known bool) {
	d.hold.mu.Lock()
	why, client := d.hold.why, d.hold.client
	d.hold.mu.Unlock()
	a := d.apps[0]
	if a.https.Load() != 443 {
		d.say.note("PORT 443 CANNOT BE HAD, so the URL has a port: %s", a.url())
		d.say.note("  %s", why)
	}
	if client != nil && !d.trusted(ctx, client) {
		root := "sudo "
		if os.Geteuid() == 0 {
			root = ""
		}
		d.say.note("browsers do not trust the certificate yet; this does it once, for all projects:\n  %s%s trust --socket %s", root, ourName(), d.hold.daemon.socket)
		for _, a := range d.apps {
			if u := a.plainURL(); u != "" {
				d.say.note("until then: %s", u)
			}
		}
	}
	if !known {
		d.say.note("this system does not resolve %s; browsers do by themselves, other programs want to be told:\n  curl --resolve %s:%d:127.0.0.1 %s", a.host, a.host, a.https.Load(), a.url())
	}
}

// ourName is what a person writes to run this program.
func ourName() string {
	if path, err := exec.LookPath("quaymaster"); err == nil && path == program() {
		return "quaymaster"
	}
	return program()
}

// trusted reports whether the programs of this machine trust the daemon's local CA.
func (d *devRun) trusted(ctx context.Context, c *api.Client) bool {
	var ca api.Authority
	if err := c.Get(ctx, "/v1/ca", &ca); err != nil {
		return false
	}
	root, err := oneCertificate([]byte(ca.Root))
	if err != nil {
		return false
	}
	_, err = root.Verify(x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// resolves reports whether the system knows a name of this machine.
func resolves(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	list, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return false
	}
	for _, at := range list {
		if ip := net.ParseIP(at); ip == nil || !ip.IsLoopback() {
			return false
		}
	}
	return len(list) > 0
}

// devColors are the colors of names, one after the other.
var devColors = []string{"36", "33", "32", "35", "34", "31", "96", "93", "92", "95"}

// devOutput is what one of several apps says.
type devOutput struct {
	out, err *os.File // for the app
	read     sync.WaitGroup
}

// open makes the pipes of an app.
func (s *devSay) open(name string) (*devOutput, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		_, _ = outR.Close(), outW.Close()
		return nil, err
	}
	o := &devOutput{out: outW, err: errW}
	s.mu.Lock()
	color := devColors[s.names%len(devColors)]
	s.names++
	s.width = max(s.width, len(name))
	s.mu.Unlock()
	o.read.Add(2)
	go s.copy(o, s.out, outR, name, color)
	go s.copy(o, s.err, errR, name, color)
	return o, nil
}

// started lets go of what the app has now.
func (o *devOutput) started() { _, _ = o.out.Close(), o.err.Close() }

// wait returns when all was printed that was said, or when somebody else has kept the pipes.
func (o *devOutput) wait() {
	done := make(chan struct{})
	go func() {
		o.read.Wait()
		close(done)
	}()
	t := time.NewTimer(devDrain)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// copy prints lines as they come, with the name before each.
func (s *devSay) copy(o *devOutput, to io.Writer, from *os.File, name, color string) {
	defer o.read.Done()
	defer from.Close()
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		line, err := r.ReadSlice('\n') // a longer one is printed in parts
		if len(line) > 0 {
			s.line(to, name, color, strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (s *devSay) line(to io.Writer, name, color, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	head := fmt.Sprintf("%-*s |", s.width, name)
	if s.color {
		head = "\x1b[" + color + "m" + head + "\x1b[0m"
		text += "\x1b[0m"
	} else {
		text = withoutColor(text)
	}
	_, _ = fmt.Fprintf(to, "%s %s\n", head, text)
}

// withoutColor takes out the sequences by which a program sets colors.
func withoutColor(text string) string {
	for {
		i := strings.Index(text, "\x1b[")
		if i < 0 {
			return text
		}
		n := strings.IndexFunc(text[i+2:], func(r rune) bool { return r >= '@' && r <= '~' })
		if n < 0 {
			return text[:i]
		}
		text = text[:i] + text[i+2+n+1:]
	}
}
