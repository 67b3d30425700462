package process

import "testing"

// TestATakenPortIsRecognisedInWhatProgramsPrint has what programs print, word for word.
func TestATakenPortIsRecognisedInWhatProgramsPrint(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		`Error: listen EADDRINUSE: address already in use 127.0.0.1:32100`,
		`Error: listen EADDRINUSE: address already in use :::32100`,
		`OSError: [Errno 98] Address already in use`,
		`OSError: [Errno 98] Die Adresse wird bereits verwendet`,
		`[Errno 98] error while attempting to bind on address ('127.0.0.1', 32100): address already in use`,
		`Port 32100 is in use by another program. Either identify and stop that program, or start the server with a different port.`,
		`Error: That port is already in use.`,
		`[2026-01-02 10:11:12 +0000] [77] [ERROR] Connection in use: ('127.0.0.1', 32100)`,
		`2026/01/02 10:11:12 main.go:12: listen tcp 127.0.0.1:32100: bind: address already in use`,
		`listen tcp :32100: bind: address already in use`,
		`java.net.BindException: Address already in use`,
		`Web server failed to start. Port 32100 was already in use.`,
		`bind(..) failed: Address already in use`,
		`Address already in use - bind(2) for "127.0.0.1" port 32100 (Errno::EADDRINUSE)`,
		`[Fri Jan  2 10:11:12 2026] Failed to listen on 127.0.0.1:32100 (reason: Address already in use)`,
		`nginx: [emerg] bind() to 127.0.0.1:32100 failed (98: Address already in use)`,
		`nginx: [emerg] bind() to 0.0.0.0:32100 failed (98: Address in use)`,
		`(98)Address already in use: AH00072: make_sock: could not bind to address [::]:32100`,
		`Error: Os { code: 98, kind: AddrInUse, message: "Address already in use" }`,
		`Error: Address in use (os error 98)`,
		`Could not create server TCP listening socket *:32100: bind: Address already in use`,
		`could not bind IPv4 address "127.0.0.1": Address already in use`,
		`** (Mix) Could not start application: {:shutdown, {:failed_to_start_child, :listener, :eaddrinuse}}`,
		`Failed to bind to address http://127.0.0.1:32100: address already in use.`,
		`error: Failed to start server. Is port 32100 in use?`,
		`Error: Port 32100 is already in use`,
		`Something is already running on port 32100.`,
		`[ALERT] (812) : Starting proxy web: cannot bind socket (Address already in use) [127.0.0.1:32100]`,
		`[ERROR] Do you already have another mysqld server running on port: 32100 ?`,
	} {
		if text, ok := portTaken([]byte(line), 32100); !ok || text == "" {
			t.Errorf("not recognised: %s", line)
		}
	}
}

func TestOtherLinesAreNotAboutThePort(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"", "listening on port 32100", "GET /in-use 200", "port 32100 in", "memory in use: 32100",
		`Starting inspector on 127.0.0.1:9229 failed: address already in use`,
		`Port 24678 is already in use`,
		`Error: listen EADDRINUSE: address already in use :::24678`,
		`WebSocket server error: Port: 24678 is already in use`,
	} {
		if _, ok := portTaken([]byte(line), 32100); ok {
			t.Errorf("taken for ours: %s", line)
		}
	}
	if _, ok := portTaken([]byte("address already in use"), 0); ok {
		t.Error("an app without a port has one that is taken")
	}
}

func FuzzPortTaken(f *testing.F) {
	f.Add([]byte("address already in use :::1"), uint16(1))
	f.Fuzz(func(t *testing.T, line []byte, port uint16) {
		if text, ok := portTaken(line, port); ok && (text == "" || len(text) > 4*maxText) {
			t.Errorf("%q", text)
		}
	})
}
