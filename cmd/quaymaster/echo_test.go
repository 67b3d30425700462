package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// echoing runs `echo` in this process until the test ends and returns the URL that it printed.
func echoing(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	code := make(chan int)
	go func() { code <- command(ctx, append([]string{"echo"}, args...), in, io.Discard) }()
	t.Cleanup(func() {
		cancel()
		if c := <-code; c != 0 {
			t.Errorf("echo ended with %d", c)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "quaymaster echo on ")
	if err != nil || !ok || strings.HasSuffix(url, ":0") {
		t.Fatalf("it printed %q, %v", line, err)
	}
	return url
}

func TestEcho_AnswersWithWhatItReceived(t *testing.T) {
	url := echoing(t, "127.0.0.1:0", "--name", "web1")
	req, _ := http.NewRequest("PUT", url+"/a%20b?c=d", strings.NewReader("some body"))
	req.Host = "app.test"
	req.Header.Set("X-A", "1")
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	first, rest, _ := strings.Cut(string(text), "\n")
	var got received
	if err := json.Unmarshal([]byte(rest), &got); err != nil || first != "quaymaster echo" {
		t.Fatalf("%q, %v", text, err)
	}
	if got.Method != "PUT" || got.Target != "/a%20b?c=d" || got.Host != "app.test" || got.Headers["X-A"][0] != "1" ||
		got.BodyLength != 9 || got.Body != "some body" || got.Name != "web1" || got.RemoteAddr == "" {
		t.Errorf("%+v", got)
	}
	req, _ = http.NewRequest("GET", url, nil)
	req.Header.Set("Accept", "application/json")
	if resp, err = tr.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var members map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&members); err != nil || members["target"] != "/" {
		t.Errorf("%v %v", members, err)
	}
	for _, name := range []string{"method", "target", "host", "headers", "body_length", "remote_addr"} {
		if _, ok := members[name]; !ok {
			t.Errorf("no member %s", name)
		}
	}
}

func TestEcho_GivesWebSocketMessagesBack(t *testing.T) {
	url := echoing(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, strings.Replace(url, "http", "ws", 1)+"/any/path", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
		if err := c.Write(ctx, kind, []byte("hej")); err != nil {
			t.Fatal(err)
		}
		if got, text, err := c.Read(ctx); got != kind || string(text) != "hej" || err != nil {
			t.Errorf("%v %q %v", got, text, err)
		}
	}
}

func TestEcho_TLSTellsTheServerName(t *testing.T) {
	url := echoing(t, "127.0.0.1:0", "--tls")
	if !strings.HasPrefix(url, "https://") {
		t.Fatal(url)
	}
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: "sni.test", InsecureSkipVerify: true}}
	req, _ := http.NewRequest("GET", url, nil)
	req.Header.Set("Accept", "application/json")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got received
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.ServerName != "sni.test" {
		t.Errorf("%+v %v", got, err)
	}
}

func TestEcho_BusyAddressSaysWhatToDo(t *testing.T) {
	url := echoing(t)
	var errs strings.Builder
	addr := strings.TrimPrefix(url, "http://")
	if code := command(context.Background(), []string{"echo", addr}, io.Discard, &errs); code != 1 || !strings.HasPrefix(errs.String(), "cannot listen on "+addr) {
		t.Errorf("%d %s", code, errs.String())
	}
}
