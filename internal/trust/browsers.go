package trust

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// Browsers have stores of their own: NSS databases, one for Chromium and one for each profile of Firefox, below the
// folder of each user.
var databases = []string{
	".pki/nssdb",
	"snap/chromium/current/.pki/nssdb",
	".mozilla/firefox/*",
	".config/mozilla/firefox/*",
	"snap/firefox/common/.mozilla/firefox/*",
	".var/app/org.mozilla.firefox/.mozilla/firefox/*",
	".var/app/org.chromium.Chromium/.pki/nssdb",
	"Library/Application Support/Firefox/Profiles/*",
}

// maxDatabases bounds how many are touched.
const maxDatabases = 64

// browsers changes the databases of the person who runs this, who may have become root with sudo.
func (c *change) browsers(ctx context.Context) []Outcome {
	home, as := person()
	if home == "" {
		return nil
	}
	var found []string
	for _, pattern := range databases {
		dirs, _ := filepath.Glob(filepath.Join(home, pattern)) // its only error is a bad pattern
		for _, dir := range dirs {
			if _, err := os.Stat(filepath.Join(dir, "cert9.db")); err == nil && !slices.Contains(found, dir) {
				found = append(found, dir)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	certutil, err := find("certutil")
	path, clean, second := "", func() {}, error(nil)
	if err == nil {
		path, clean, second = c.temporary()
	}
	if clean != nil {
		defer clean()
	}
	var out []Outcome
	for _, dir := range found[:min(len(found), maxDatabases)] {
		o := Outcome{Store: "browser (" + dir + ")"}
		switch {
		case err != nil:
			o.State, o.Message = Failed, "certutil is not installed"
			o.Remedy = "install it (Debian: apt-get install libnss3-tools; Fedora: dnf install nss-tools), then run again: " + c.again
		case second != nil:
			o = c.cannot(o, second)
		default:
			o = c.database(ctx, o, certutil, dir, path, as)
		}
		out = append(out, o)
	}
	return out
}

// database changes one.
func (c *change) database(ctx context.Context, o Outcome, certutil, dir, path string, as func(*exec.Cmd)) Outcome {
	name, at := "Quaymaster "+c.short(), "sql:"+dir
	there := start(ctx, as, certutil, "-L", "-d", at, "-n", name) == nil
	var err error
	switch {
	case c.remove && !there:
		o.State, o.Message = Absent, "it is not there"
		return o
	case c.remove:
		o.State, o.Message = Removed, "as "+strconv.Quote(name)
		err = start(ctx, as, certutil, "-D", "-d", at, "-n", name)
	case there:
		o.State, o.Message = Trusted, "it has been there already"
		return o
	default:
		o.State, o.Message = Trusted, "as "+strconv.Quote(name)+"; restart the browser"
		err = start(ctx, as, certutil, "-A", "-d", at, "-t", "C,,", "-n", name, "-i", path)
	}
	if err != nil {
		o.State, o.Message, o.Remedy = Failed, err.Error(), "close the browser and run again: "+c.again
	}
	return o
}

// person is the home of whoever runs this, and what makes a program theirs where they are root by sudo: files that root
// writes into a profile are of no use to its owner.
func person() (home string, as func(*exec.Cmd)) {
	if name := os.Getenv("SUDO_USER"); name != "" && os.Geteuid() == 0 {
		u, err := user.Lookup(name)
		if err != nil {
			return "", nil
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		gid, second := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil || second != nil {
			return "", nil
		}
		return u.HomeDir, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
			cmd.Env = append(os.Environ(), "HOME="+u.HomeDir)
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nil
	}
	return home, nil
}
