// Package trust puts a root certificate into the stores of this machine that programs look into, and takes it out again.
//
// It promises that every store that was found is told of, with what was done, or what could not be and the command that
// does it; that it touches no certificate but the one it is given; and that doing a thing twice is no error. It asks
// nobody for a password and never makes itself another user: what needs root is done as root, or said.
package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// An Outcome is what became of one store.
type Outcome struct {
	Store   string `json:"store"`
	State   string `json:"state"` // one of the constants
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// The states of a store.
const (
	Trusted = "trusted" // by now, or before already
	Removed = "removed"
	Absent  = "absent" // it was not there to be removed
	Failed  = "failed"
)

// A change is one certificate on its way into the stores, or out of them.
type change struct {
	root   *x509.Certificate
	remove bool
	again  string // the command line that does all of this, for messages
}

// Install makes the programs of this machine trust root. again is the command line that was given.
func Install(ctx context.Context, root *x509.Certificate, again string) []Outcome {
	return (&change{root: root, again: again}).all(ctx)
}

// Remove takes root out of wherever Install puts it.
func Remove(ctx context.Context, root *x509.Certificate, again string) []Outcome {
	return (&change{root: root, remove: true, again: again}).all(ctx)
}

func (c *change) all(ctx context.Context) []Outcome {
	var out []Outcome
	if runtime.GOOS == "darwin" {
		out = append(out, c.keychain(ctx))
	} else {
		out = append(out, c.anchors(ctx))
	}
	return append(out, c.browsers(ctx)...)
}

// A folder holds roots that a program of the system makes into its store.
type folder struct {
	path   string
	update []string
	drop   []string // after a root was removed; nil: update
}

// folders are those of the systems that have one. The first that is there, with its program, is the system's.
var folders = []folder{
	{"/etc/pki/ca-trust/source/anchors", []string{"update-ca-trust", "extract"}, nil},                                       // Fedora, RHEL
	{"/usr/local/share/ca-certificates", []string{"update-ca-certificates"}, []string{"update-ca-certificates", "--fresh"}}, // Debian, Ubuntu, Alpine
	{"/etc/ca-certificates/trust-source/anchors", []string{"trust", "extract-compat"}, nil},                                 // Arch
	{"/usr/share/pki/trust/anchors", []string{"update-ca-certificates"}, nil},                                               // openSUSE
	{"/usr/local/share/certs", []string{"certctl", "rehash"}, nil},                                                          // FreeBSD
}

// within bounds one program of the system.
const within = 2 * time.Minute

// anchors is the store of the system, as most Unix systems have it.
func (c *change) anchors(ctx context.Context) Outcome {
	o := Outcome{Store: "system"}
	for _, f := range folders {
		if i, err := os.Stat(f.path); err != nil || !i.IsDir() {
			continue
		}
		program, err := find(f.update[0])
		if err != nil {
			continue
		}
		return c.anchor(ctx, o, f, program)
	}
	o.State, o.Message = Failed, "no store was found"
	o.Remedy = "install your system's ca-certificates package, or give programs the root by hand (curl --cacert, SSL_CERT_FILE): quaymaster trust --print"
	return o
}

// anchor puts the root into a folder, or takes it out, and has the system's program look at it.
func (c *change) anchor(ctx context.Context, o Outcome, f folder, program string) Outcome {
	path := filepath.Join(f.path, c.file())
	o.Store += " (" + f.path + ")"
	text := c.pem()
	have, err := os.ReadFile(path)
	switch there := err == nil; {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return c.cannot(o, err)
	case c.remove && !there && !c.trusted():
		o.State, o.Message = Absent, "it is not there"
		return o
	case !c.remove && there && bytes.Equal(have, text) && c.trusted():
		o.State, o.Message = Trusted, "it has been there already: "+path
		return o
	case c.remove:
		err = os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	default:
		err = os.WriteFile(path, text, 0o644) // everybody reads it
	}
	if err != nil {
		return c.cannot(o, err)
	}
	line := f.update
	if c.remove && f.drop != nil {
		line = f.drop
	}
	if err := run(ctx, program, line[1:]...); err != nil {
		o.State, o.Message, o.Remedy = Failed, fmt.Sprintf("%s is written, but %v", path, err), "run as root: "+strings.Join(line, " ")
		if c.remove {
			o.Message = fmt.Sprintf("%s is removed, but %v", path, err)
		}
		return o
	}
	o.State, o.Message = Trusted, path
	if c.remove {
		o.State, o.Message = Removed, path
	}
	return o
}

// trusted reports whether the bundle that the system's program makes has the root.
func (c *change) trusted() bool {
	for _, bundle := range []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		text, err := os.ReadFile(bundle)
		if err != nil {
			continue
		}
		for len(text) > 0 {
			var block *pem.Block
			if block, text = pem.Decode(text); block == nil {
				break
			}
			if bytes.Equal(block.Bytes, c.root.Raw) {
				return true
			}
		}
	}
	return false
}

// cannot is an outcome for want of a right, or for another reason.
func (c *change) cannot(o Outcome, err error) Outcome {
	o.State, o.Message = Failed, err.Error()
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		o.Remedy = "run it as root: sudo " + c.again
	}
	return o
}

// keychain is the store of macOS.
func (c *change) keychain(ctx context.Context) Outcome {
	o := Outcome{Store: "system (System.keychain)"}
	path, clean, err := c.temporary()
	if err != nil {
		return c.cannot(o, err)
	}
	defer clean()
	const chain = "/Library/Keychains/System.keychain"
	line := []string{"add-trusted-cert", "-d", "-r", "trustRoot", "-k", chain, path}
	o.State, o.Message = Trusted, chain
	if c.remove {
		sum := sha256.Sum256(c.root.Raw)
		line = []string{"delete-certificate", "-Z", strings.ToUpper(hex.EncodeToString(sum[:])), "-t", chain}
		o.State = Removed
	}
	if err := run(ctx, "security", line...); err != nil {
		o.State, o.Message, o.Remedy = Failed, err.Error(), "run it as root: sudo "+c.again
	}
	return o
}

// file is the name of the root in a folder. It tells the roots of several machines apart.
func (c *change) file() string { return "quaymaster-" + c.short() + ".crt" }

func (c *change) short() string {
	sum := sha256.Sum256(c.root.Raw)
	return hex.EncodeToString(sum[:6])
}

func (c *change) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.root.Raw})
}

// temporary is a file that holds the root until clean is called.
func (c *change) temporary() (path string, clean func(), err error) {
	f, err := os.CreateTemp("", "quaymaster-root-*.crt")
	if err != nil {
		return "", nil, err
	}
	_, err = f.Write(c.pem())
	err = errors.Join(err, f.Chmod(0o644), f.Close()) // another user's certutil may have to read it
	if err != nil {
		_ = os.Remove(f.Name())
		return "", nil, err
	}
	return f.Name(), func() { _ = os.Remove(f.Name()) }, nil
}

// find is exec.LookPath that knows where the programs of root are.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// run runs a program of the system to its end.
func run(ctx context.Context, program string, args ...string) error {
	return start(ctx, nil, program, args...)
}

// maxSaid bounds what is repeated of a program's output.
const maxSaid = 300

func start(ctx context.Context, as func(*exec.Cmd), program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	if as != nil {
		as(cmd)
	}
	said, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(said))
		if len(text) > maxSaid {
			text = "..." + text[len(text)-maxSaid:]
		}
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, text)
	}
	return nil
}
