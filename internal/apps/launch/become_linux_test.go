package launch

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const none = "0000000000000000"

func TestTheProgramBeginsAsTheDaemonBegan(t *testing.T) {
	// A shell with a low limit, signals ignored and a descriptor that it leaks, as a careless starter of daemons may be.
	r, said := byOuter(t, Spec{}, "/bin/sh", "-c", `ulimit -S -n 300; trap "" HUP PIPE TSTP; exec 9</dev/null; exec "$@"`, "sh")
	if said != "" {
		t.Fatal(said)
	}
	if r.NoFile != 300 {
		t.Errorf("limit of open files %d, want the 300 from before Go raised it", r.NoFile)
	}
	if !slices.Equal(r.FDs, []int{0, 1, 2}) {
		t.Errorf("descriptors %v %q", r.FDs, r.Open)
	}
	if !slices.Contains(r.Env, "KEPT=1") || slices.ContainsFunc(r.Env, func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET") }) {
		t.Errorf("environment %q", r.Env)
	}
}

func TestNoSignalIsIgnoredOrBlocked(t *testing.T) {
	// Of a shell's own process, since a Go program changes its signals at once.
	out, said := shellStatus(t, "trap '' HUP INT PIPE TSTP TTOU USR1")
	for _, set := range []string{"SigIgn", "SigBlk"} {
		// 32 and 33 are the C library's own: some shells start with one of them ignored, and nobody can change that.
		if bits, err := strconv.ParseUint(out[set], 16, 64); err != nil || bits&^(3<<31) != 0 {
			t.Errorf("%s %s %s", set, out[set], said)
		}
	}
}

// shellStatus is /proc/self/status of cat, launched by an outer process that began with setup in a shell.
func shellStatus(t *testing.T, setup string) (map[string]string, string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", setup+`; exec "$@"`, "sh", self(t), "outer", `{"path":"/bin/cat","args":["cat","/proc/self/status"]}`)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	out := make(map[string]string)
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(line, ":\t"); ok {
			out[k] = v
		}
	}
	if out["Name"] != "cat" {
		t.Fatalf("%s", b)
	}
	return out, string(b)
}

func TestLimitOfOpenFilesIsWhatWasAskedFor(t *testing.T) {
	r, said := byOuter(t, Spec{NoFile: &NoFile{Soft: 128, Hard: 256}}, "/usr/bin/env")
	if said != "" || r.NoFile != 128 {
		t.Errorf("limit %d %s", r.NoFile, said)
	}
	_, said = byOuter(t, Spec{NoFile: &NoFile{Soft: 1 << 40, Hard: 1 << 40}}, "/usr/bin/env")
	if !strings.Contains(said, "refused: ") || !strings.Contains(said, "set the limit of open files to 1099511627776") {
		t.Errorf("an impossible limit: %q", said)
	}
}

// rootAnd skips without the right, and without the program, to change users.
func rootAnd(t *testing.T, program string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can change users")
	}
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestRootBecomesTheUserForGood(t *testing.T) {
	rootAnd(t, "setpriv")
	r, said := byOuter(t, Spec{User: &User{UID: 65534, GID: 65533, Groups: []int{7, 65533}}}, "/usr/bin/env")
	if said != "" {
		t.Fatal(said)
	}
	slices.Sort(r.Groups)
	if r.UID != 65534 || r.GID != 65533 || !slices.Equal(r.Groups, []int{7, 65533}) {
		t.Errorf("user %d, group %d, groups %v", r.UID, r.GID, r.Groups)
	}
	if r.Status["Uid"] != "65534\t65534\t65534\t65534" || r.Status["Gid"] != "65533\t65533\t65533\t65533" {
		t.Errorf("Uid %q, Gid %q", r.Status["Uid"], r.Status["Gid"])
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if r.Status[set] != none {
			t.Errorf("%s %s", set, r.Status[set])
		}
	}
	if r, said = byOuter(t, Spec{User: &User{UID: 65534, GID: 65534}}, "/usr/bin/env"); said != "" || len(r.Groups) > 1 {
		t.Errorf("without groups: %v %s", r.Groups, said)
	}
}

func TestAmbientCapabilitiesEndHere(t *testing.T) {
	rootAnd(t, "setpriv")
	as := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service"}
	b, err := exec.Command(as[0], append(slices.Clone(as[1:]), "cat", "/proc/self/status")...).CombinedOutput()
	if err != nil || !strings.Contains(string(b), "CapAmb:\t0000000000000400") {
		t.Fatalf("setpriv gives no ambient capability: %v\n%s", err, b)
	}
	r, said := byOuter(t, Spec{}, as...)
	if said != "" {
		t.Fatal(said)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if r.UID != 65534 || r.Status[set] != none {
			t.Errorf("user %d: %s %s", r.UID, set, r.Status[set])
		}
	}
}

func TestAUserCannotBecomeAnother(t *testing.T) {
	rootAnd(t, "setpriv")
	as := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	_, said := byOuter(t, Spec{User: &User{UID: 65533, GID: 65533}}, as...)
	if !strings.Contains(said, "refused: ") || !strings.Contains(said, "run as user 65533, group 65533: only root may; the daemon is user 65534") {
		t.Errorf("%q", said)
	}
	if r, said := byOuter(t, Spec{User: &User{UID: 65534, GID: 65534}}, as...); said != "" || r.UID != 65534 {
		t.Errorf("as the user that it is already: %d %q", r.UID, said)
	}
}
