package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/ports"
)

// Client talks to a running daemon over its admin socket. A refusal comes back as *Problem, and a daemon that cannot
// be reached as *Unreachable.
type Client struct {
	socket string
	http   http.Client
}

// Unreachable says that nobody answers on the admin socket.
type Unreachable struct {
	Socket string
	Err    error
}

func (e *Unreachable) Error() string {
	return fmt.Sprintf("cannot reach a running quaymaster at %s: %v; start one with \"quaymaster run\", or name its socket with --socket", e.Socket, cause(e.Err))
}

func (e *Unreachable) Unwrap() error { return e.Err }

// cause leaves out what the message says already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// NewClient returns a client of the daemon at that socket. It does not connect yet. Close ends its connections.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if os.Geteuid() != 0 { // root may be asked to speak with anybody's
				if err := ports.Folder(socket); err != nil {
					return nil, &Unreachable{Socket: socket, Err: err}
				}
			}
			d := net.Dialer{Timeout: 5 * time.Second}
			conn, err := d.DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, &Unreachable{Socket: socket, Err: err}
			}
			return conn, nil
		},
		MaxIdleConns: 2, IdleConnTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute,
	}
	return c
}

// Close ends the connections that wait to be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for the object at path.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.Do(ctx, http.MethodGet, path, "", nil, out)
}

// Do sends body (JSON or YAML text; nil for none) and reads the answer into out, unless that is nil. match is the
// revision of If-Match, "" for none.
func (c *Client) Do(ctx context.Context, method, path, match string, body []byte, out any) error {
	resp, err := c.send(ctx, method, path, match, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("cannot read the daemon's answer to %s %s: %w; are both of one version?", method, path, err)
	}
	return nil
}

// send makes one request and turns a refusal into an error.
func (c *Client) send(ctx context.Context, method, path, match string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if match == "*" {
		req.Header.Set("If-Match", match)
	} else if match != "" {
		req.Header.Set("If-Match", etag(match))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var away *Unreachable
		if errors.As(err, &away) {
			return nil, away
		}
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, &Unreachable{Socket: c.socket, Err: err}
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := &Problem{Status: resp.StatusCode}
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(p) != nil || p.Title == "" {
		p.Title = http.StatusText(resp.StatusCode)
	}
	return nil, p
}

// Reload reads the files again and follows them.
func (c *Client) Reload(ctx context.Context, o ReloadOptions) (*Change, error) {
	q := url.Values{}
	if o.DryRun {
		q.Set("dry_run", "true")
	}
	if o.Confirm > 0 {
		q.Set("confirm", o.Confirm.String())
	}
	var out Change
	return &out, c.Do(ctx, http.MethodPost, "/v1/reload?"+q.Encode(), "", nil, &out)
}

// Explain asks a question; Text, Method, Client and Header of q are sent.
func (c *Client) Explain(ctx context.Context, q Question) (*Explanation, error) {
	v := url.Values{"url": {q.Text}}
	if q.Method != "" {
		v.Set("method", q.Method)
	}
	if q.Client != "" {
		v.Set("client", q.Client)
	}
	for name, value := range q.Header {
		v.Add("header", name+": "+value)
	}
	var out Explanation
	return &out, c.Get(ctx, "/v1/explain?"+v.Encode(), &out)
}

// Events hands the last n events and then each new one to f, until f returns false, ctx ends, or the daemon does.
func (c *Client) Events(ctx context.Context, last int, f func(Event) bool) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/events?last="+strconv.Itoa(last), "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxBody)
	kind := ""
	for lines.Scan() {
		if k, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			kind = k
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || kind == "missed" {
			continue
		}
		var e Event
		if json.Unmarshal([]byte(data), &e) == nil && !f(e) {
			return nil
		}
	}
	return lines.Err()
}

// Lines hands each line of output that path streams to f, until f returns false, ctx ends, or the daemon does.
func (c *Client) Lines(ctx context.Context, path string, f func(AppLine) bool) error {
	resp, err := c.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		var l AppLine
		if ok && json.Unmarshal([]byte(data), &l) == nil && l.Number > 0 && !f(l) {
			return nil
		}
	}
	return lines.Err()
}
