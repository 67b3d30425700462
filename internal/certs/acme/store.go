package acme

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/quaymaster/quaymaster/internal/state"
)

// A store keeps whole values under flat names. Everything that lasts goes through it, so that one that several machines
// share can take its place; that one would also hold a lock per name from before an order to after its certificate is
// written, which here the folder's own lock makes needless.
type store interface {
	Read(name string) ([]byte, error) // fs.ErrNotExist for what was never written
	Write(name string, data []byte) error
	Remove(name string) error
	List(prefix string) ([]string, error)
	Where(name string) string // for people
	Fault() error             // why the last Write was refused; nil when it was not
}

// folder is the store in the state folder. state writes 0600, durably, a value as a whole or not at all.
type folder struct{ *state.Dir }

// List returns the names that begin with prefix.
func (f folder) List(prefix string) ([]string, error) {
	files, err := os.ReadDir(f.Path())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range files {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Where is the path of a file.
func (f folder) Where(name string) string { return filepath.Join(f.Path(), name) }
