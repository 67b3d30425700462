package containers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/client"

	"github.com/quaymaster/quaymaster/internal/engine"
)

const (
	maxFrame = 64 << 20 // bytes of one piece of output that are read at all
	maxLine  = 64 << 10 // bytes of a line that are passed on at once
)

// follower makes lines of the output of a container. Each has the engine's time of it, and nanoseconds that count those of
// one moment: so the time alone says which line it was, also where the engine knows only seconds, and whoever has kept the
// time of the newest line knows what is still to come.
type follower struct {
	out    func(at time.Time, stderr bool, text []byte)
	newest time.Time // of what was passed on
	tail   int       // lines to begin with, where nothing is known; 0: all

	moment time.Time // of the piece before
	count  int       // of pieces of that moment
	parts  [2][]byte // of lines that are not complete
}

// hear follows the output until the container has ended or was left.
func (i *instance) hear() {
	defer i.work.Done()
	defer close(i.heard)
	pause := again
	for i.life.Err() == nil {
		was := i.log.newest
		err := i.stream(i.life, true) // whatever ended it, it is begun again
		if err != nil && !away(err) && !isMissing(err) && i.life.Err() == nil {
			i.r.sayOnce(i.data.Name, "output cannot be read: "+clip(err.Error()))
		}
		if i.log.newest.After(was) {
			pause = again
		}
		select {
		case <-i.ending: // what came between the end of the stream and that of the container
			ctx, stop := context.WithTimeout(i.life, lastWords)
			defer stop()
			if err := i.stream(ctx, false); err != nil && !isMissing(err) && i.life.Err() == nil {
				i.r.opt.Log.Warn("last words of a container are not known", "container", i.data.Name, "err", err)
			}
			i.log.flush()
			return
		case <-i.life.Done():
			return
		default:
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-i.ending:
		case <-i.life.Done():
		}
		timer.Stop()
		pause = min(2*pause, againMost)
	}
}

// stream reads the output from the newest line on: what there is, or with follow until there is no more to come.
func (i *instance) stream(ctx context.Context, follow bool) error {
	c, err := engine.Open(i.data.Socket, true)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // closes idle connections, and cannot fail
	o := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: follow}
	switch {
	case !i.log.newest.IsZero():
		o.Since = strconv.FormatInt(i.log.newest.Unix(), 10) // the whole second, so that the lines of one moment are counted anew
	case i.log.tail > 0:
		o.Tail = strconv.Itoa(i.log.tail)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if follow { // some engines go on with the stream of a container that has ended
		defer i.after(lastWords, stop)()
	}
	res, err := c.ContainerLogs(ctx, i.id, o)
	if err != nil {
		if away(err) {
			return err
		}
		return &saidError{cause: err, text: clip(words(err))}
	}
	defer func() { _ = res.Close() }()
	return i.log.read(res)
}

// after calls f when the container has ended so long ago; the func that it returns ends that.
func (i *instance) after(d time.Duration, f func()) (never func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-i.ending:
		case <-quit:
			return
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			f()
		case <-quit:
		}
	}()
	return func() { close(quit); <-gone }
}

// read takes frames apart: a stream, three zeros, a length, and then a time and a text.
func (l *follower) read(from io.Reader) error {
	l.moment, l.count = time.Time{}, 0
	in := bufio.NewReaderSize(from, 32<<10)
	var head [8]byte
	text := make([]byte, 0, 4<<10)
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		if head[0] > 2 || head[1] != 0 || head[2] != 0 || head[3] != 0 || size > maxFrame {
			return fmt.Errorf("the output of a container is no stream of frames: %q", head)
		}
		part := int(min(size, maxLine+100))
		text = slices.Grow(text[:0], part)[:part]
		if _, err := io.ReadFull(in, text); err != nil {
			return err
		}
		cut := size - int64(len(text))
		if _, err := io.CopyN(io.Discard, in, cut); err != nil {
			return err
		}
		l.take(head[0] == 2, text, cut > 0)
	}
}

// take passes on one piece, unless that was done before.
func (l *follower) take(stderr bool, piece []byte, cut bool) {
	word, text, ok := bytes.Cut(piece, []byte(" "))
	at, err := time.Parse(time.RFC3339Nano, string(word[:min(len(word), 64)]))
	if !ok || err != nil {
		at, text = time.Now(), piece // an engine that gives no times cannot be asked twice either
	}
	if at.Equal(l.moment) {
		l.count++
	} else {
		l.moment, l.count = at, 0
	}
	at = at.Add(time.Duration(l.count))
	if !at.After(l.newest) {
		return
	}
	l.newest = at
	n := 0
	if stderr {
		n = 1
	}
	whole := cut
	if k := len(text); k > 0 && text[k-1] == '\n' {
		text, whole = text[:k-1], true
	}
	line := text
	if len(l.parts[n]) > 0 {
		l.parts[n] = append(l.parts[n], text...)
		line = l.parts[n]
	} else if !whole {
		l.parts[n] = append(l.parts[n], text...)
		line = l.parts[n]
	}
	for len(line) >= maxLine {
		l.out(at, stderr, line[:maxLine])
		line = line[maxLine:]
		if len(line) == 0 && whole {
			l.parts[n] = nil
			return
		}
	}
	if whole {
		l.out(at, stderr, line)
		l.parts[n] = nil
	} else {
		l.parts[n] = append([]byte(nil), line...)
	}
}

// flush passes on lines that will not be completed any more.
func (l *follower) flush() {
	for n, part := range l.parts {
		if len(part) > 0 {
			l.out(l.newest, n == 1, part)
			l.parts[n] = nil
		}
	}
}
