package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The whole of trust, on a copy of this machine's stores that only the test sees.
func TestT10_TrustInstallsAndRemovesTheRoot(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"unshare", "update-ca-certificates", "certutil", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "" {
				t.Skipf("LOUD SKIP: %s is not installed", program)
			}
			t.Fatalf("%s is not installed", program)
		}
	}
	port := freePort(t)
	q := start(t, fmt.Sprintf(`
routes:
  - {name: local, match: {ports: [%d], domains: [localhost]}, action: {respond: {status: 200, body: "well\n"}, tls: {certificate: internal}}}
`, port))
	home := t.TempDir()
	script := filepath.Join(home, "script")
	if err := os.WriteFile(script, []byte(fmt.Sprintf(`set -eu
mkdir %[1]s/ssl %[1]s/share %[1]s/profile
cp -a /etc/ssl/. %[1]s/ssl/
mount --bind %[1]s/ssl /etc/ssl
mount --bind %[1]s/share /usr/local/share/ca-certificates
export HOME=%[1]s SUDO_USER=
mkdir -p $HOME/.pki/nssdb $HOME/.mozilla/firefox/abc.default
certutil -N --empty-password -d sql:$HOME/.pki/nssdb
certutil -N --empty-password -d sql:$HOME/.mozilla/firefox/abc.default
ask() { curl -sS --noproxy '*' -m 20 https://localhost:%[2]d/ && echo "$1 accepts" || echo "$1 exit $?"; }
ask before
echo "== install"; %[3]s trust --socket %[4]s; echo "exit $?"
ask installed
certutil -L -d sql:$HOME/.pki/nssdb; certutil -L -d sql:$HOME/.mozilla/firefox/abc.default
echo "== again"; %[3]s trust --socket %[4]s; echo "exit $?"
ls /usr/local/share/ca-certificates
echo "== remove"; %[3]s trust --remove --socket %[4]s; echo "exit $?"
ask removed
certutil -L -d sql:$HOME/.pki/nssdb; certutil -L -d sql:$HOME/.mozilla/firefox/abc.default
echo "== remove again"; %[3]s trust --remove --json --socket %[4]s; echo "exit $?"
find /usr/local/share/ca-certificates /etc/ssl -iname 'quaymaster*' | wc -l
`, home, port, binary, q.sock)), 0o700); err != nil {
		t.Fatal(err)
	}
	machine := stores(t)
	flags := "-m"
	if os.Geteuid() != 0 {
		flags = "-rm"
	}
	text, err := exec.Command("unshare", flags, "sh", script).CombinedOutput()
	out := string(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	after, ok := "", true
	section := func(name string) string {
		var part string
		_, after, ok = strings.Cut(out, "== "+name+"\n")
		if part, _, _ = strings.Cut(after, "== "); !ok {
			t.Fatalf("no section %q in\n%s", name, out)
		}
		return part
	}
	if before, _, _ := strings.Cut(out, "== "); !strings.Contains(before, "before exit 60") {
		t.Errorf("before: %s", before)
	}
	install := section("install")
	if !strings.Contains(install, "exit 0") || !strings.Contains(install, "installed accepts") || strings.Count(install, "trusted  ") != 3 {
		t.Errorf("install: %s", install)
	}
	if strings.Count(install, "C,,") != 2 {
		t.Errorf("not in both databases of browsers: %s", install)
	}
	if again := section("again"); !strings.Contains(again, "exit 0") || strings.Count(again, "already") != 3 || strings.Count(again, ".crt\n") != 2 { // named once by trust, once by ls
		t.Errorf("again: %s", again)
	}
	remove := section("remove")
	if !strings.Contains(remove, "exit 0") || !strings.Contains(remove, "removed exit 60") || strings.Contains(remove, "C,,") || strings.Count(remove, "removed  ") != 3 {
		t.Errorf("remove: %s", remove)
	}
	if again := section("remove again"); strings.Count(again, `"absent"`) != 3 || !strings.Contains(again, "exit 0\n0\n") {
		t.Errorf("remove again: %s", again)
	}
	if now := stores(t); now != machine {
		t.Error("the machine's own stores have changed")
	}
}

// stores are those of the machine that the test runs on.
func stores(t testing.TB) [32]byte {
	t.Helper()
	bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatal(err)
	}
	list, _ := filepath.Glob("/usr/local/share/ca-certificates/*")
	return sha256.Sum256(append(bundle, strings.Join(list, "\n")...))
}

func TestT10_TrustSaysWhatItCannotDo(t *testing.T) {
	t.Parallel()
	q := start(t, fmt.Sprintf("routes: [{match: {ports: [%d]}, action: {respond: {status: 200}}}]\n", freePort(t)))
	if out, code := q.cli("trust", "--print"); code != 1 || !strings.Contains(out, "certificate: internal") {
		t.Errorf("without a local CA: exit %d\n%s", code, out)
	}
	q.signal(os.Interrupt)
	q.wait(30 * time.Second)
	if out, code := cli(t, "trust", "--print", "-c", q.file); code != 1 || !strings.Contains(out, "state folder") {
		t.Errorf("without a daemon and a local CA: exit %d\n%s", code, out)
	}
	q.write(fmt.Sprintf("routes: [{match: {ports: [%d], domains: [localhost]}, action: {respond: {status: 200}, tls: {certificate: internal}}}]\n", freePort(t)))
	q.run()
	q.serving()
	want, _ := q.root()
	q.signal(os.Interrupt)
	q.wait(30 * time.Second)
	out, code := cli(t, "trust", "--print", "-c", q.file) // from the state folder
	if text, err := os.ReadFile(want); code != 0 || err != nil || out != string(text) {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
}
