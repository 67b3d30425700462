package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// Check names what would keep an app from starting.
func (r *Runner) Check(_ context.Context, a *plan.App) []error {
	faults, ours := Preflight(a)
	return append(faults, ours...)
}

// Preflight names what would keep an app from starting here, and apart from it what would do so because of who we are: it is
// otherwise for a daemon of another user, or with another environment.
func Preflight(a *plan.App) (faults, ours []error) {
	fault := func(err error) {
		var us *usError
		switch {
		case err == nil:
		case errors.As(err, &us), errors.Is(err, os.ErrPermission):
			ours = append(ours, err)
		default:
			faults = append(faults, err)
		}
	}
	if len(a.Command) == 0 {
		return []error{errors.New("it has no command; write command: [PROGRAM, ARGUMENT]")}, nil
	}
	fault(checkUser(a))
	fault(checkDir(a.Dir))
	fault(checkProgram(a))
	fault(checkLimits(a.Limits))
	for _, name := range a.EnvRequired {
		switch {
		case has(a, name):
		case a.InheritEnv:
			fault(&usError{name + " is not set; set it under env, or for quaymaster"})
		default:
			fault(fmt.Errorf("%s is not set; set it under env, or write inherit_env: true and set it for quaymaster", name))
		}
	}
	return faults, ours
}

// usError is a fault that lies in who we are.
type usError struct{ text string }

func (e *usError) Error() string { return e.text }

func checkUser(a *plan.App) error {
	if a.User == "" {
		if os.Geteuid() == 0 {
			return &usError{"quaymaster runs as root, and it would too; write user: NAME, or user: root where that is meant"}
		}
		return nil
	}
	u, err := lookUp(a.User)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 && u.other() {
		return &usError{fmt.Sprintf("only root may run it as user %s, and quaymaster runs as user %d; leave user out, or run quaymaster as root", a.User, os.Geteuid())}
	}
	return nil
}

func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("its folder cannot be used: %w", err)
	case !info.IsDir():
		return fmt.Errorf("dir %s is no folder", dir)
	}
	return nil
}

// checkLimits compares with the hard limit, which only root may raise, and not for ever.
func checkLimits(l plan.AppLimits) error {
	var have unix.Rlimit
	if l.NoFile == 0 {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	most := uint64(have.Max) //nolint:unconvert // the type differs between systems
	if os.Geteuid() == 0 {
		most = max(most, systemFiles())
	}
	if l.NoFile > most {
		return &usError{fmt.Sprintf("limits.nofile is %d, and %d open files are the most that quaymaster may give; lower it, or raise LimitNOFILE= or ulimit -Hn", l.NoFile, most)}
	}
	return nil
}

// checkProgram looks for the program, where that can be done before the start.
func checkProgram(a *plan.App) error {
	name := a.Command[0]
	if strings.Contains(name, "${") {
		return nil
	}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(a.Dir, name)
		}
		return executable(name)
	}
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	for _, v := range a.Env {
		if v.Name == "PATH" {
			path = v.Value
		}
	}
	var found error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		err := executable(filepath.Join(dir, name))
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			found = err
		}
	}
	if found != nil {
		return found
	}
	return fmt.Errorf("there is no program %s in PATH=%s; install it, or write its whole path", name, path)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("its program cannot be used: %w", err)
	case info.IsDir():
		return fmt.Errorf("%s is a folder, not a program", path)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable; chmod +x %s", path, path)
	}
	return nil
}

// has reports whether a variable is set for an app.
func has(a *plan.App, name string) bool {
	if slices.ContainsFunc(a.Env, func(v plan.EnvVar) bool { return v.Name == name }) {
		return true
	}
	_, ours := os.LookupEnv(name)
	return a.InheritEnv && ours
}
