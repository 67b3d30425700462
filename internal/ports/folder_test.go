package ports

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFolderOfASocket(t *testing.T) {
	top := filepath.Join(t.TempDir(), "tmp")
	ours := filepath.Join(top, "ours")
	if err := os.MkdirAll(ours, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(top, 0o1777); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(ours, "a.sock"), filepath.Join(top, "none", "a.sock"), filepath.Join(top, "a.sock")} {
		if err := Folder(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make a folder of somebody else")
	}
	deep := filepath.Join(top, "theirs", "deep")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Dir(deep), 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(ours, filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(filepath.Join(top, "link"), 4242, 4242); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(deep), deep, filepath.Join(top, "link")} {
		if err := Folder(filepath.Join(dir, "a.sock")); err == nil || !strings.Contains(err.Error(), "made by user 4242") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := (&Ports{}).ListenAdmin(filepath.Join(deep, "a.sock"), "0600", ""); err == nil || !strings.Contains(err.Error(), "made by user 4242") {
		t.Errorf("the daemon listens there: %v", err)
	}
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Folder(filepath.Join(deep, "a.sock")); err != nil {
		t.Errorf("where somebody was given a folder: %v", err)
	}
}
