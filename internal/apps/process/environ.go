package process

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/quaymaster/quaymaster/internal/apps/launch"
	"github.com/quaymaster/quaymaster/internal/apps/run"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// account is whom an app runs as.
type account struct {
	name, home string
	uid, gid   int
	groups     []int
	asked      bool // the plan names it
}

// other reports whether it is somebody else than we are.
func (u *account) other() bool { return u.uid != os.Geteuid() }

// switchTo is what launch is told, nil where nothing is to change.
func (u *account) switchTo() *launch.User {
	if !u.asked {
		return nil
	}
	return &launch.User{UID: u.uid, GID: u.gid, Groups: u.groups}
}

// lookUp finds an account by the name or number that the plan has, or our own for "".
func lookUp(name string) (*account, error) {
	if name == "" {
		return ourselves(), nil
	}
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if _, number := strconv.ParseUint(name, 10, 31); errors.As(err, &unknown) && number == nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return nil, fmt.Errorf("there is no user %s on this machine; write one that \"id %s\" knows", name, name)
	}
	a := &account{name: u.Username, home: u.HomeDir, asked: true}
	if a.uid, err = strconv.Atoi(u.Uid); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	if a.gid, err = strconv.Atoi(u.Gid); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for _, id := range ids {
		n, err := strconv.Atoi(id)
		if err != nil {
			return nil, fmt.Errorf("groups of user %s: %w", name, err)
		}
		a.groups = append(a.groups, n)
	}
	return a, nil
}

// ourselves may be without an entry in any list of users, as in many containers.
func ourselves() *account {
	a := &account{uid: os.Geteuid(), gid: os.Getegid(), name: os.Getenv("USER"), home: os.Getenv("HOME")}
	if u, err := user.LookupId(strconv.Itoa(a.uid)); err == nil {
		a.name, a.home = u.Username, u.HomeDir
	}
	if home := os.Getenv("HOME"); home != "" {
		a.home = home
	}
	return a
}

// placeholders are what the command and the environment may have put in.
func placeholders(s *run.Start) *strings.Replacer {
	return strings.NewReplacer("${PORT}", portText(s), "${HOST}", s.Host, "${SOCKET}", s.Path, "${QUAYMASTER_URL}", s.URL)
}

func portText(s *run.Start) string {
	if s.Port == 0 {
		return ""
	}
	return strconv.Itoa(int(s.Port))
}

// environ is the whole environment of an app, but for what it inherits: what any program may expect, what the plan says,
// and what we tell it.
func environ(s *run.Start, u *account, put *strings.Replacer) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	lang := os.Getenv("LANG")
	if lang == "" {
		lang = "C.UTF-8"
	}
	env := []string{"PATH=" + path, "LANG=" + lang}
	add := func(name, value string) {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	add("HOME", u.home)
	add("USER", u.name)
	add("TZ", os.Getenv("TZ"))
	if !u.other() { // ours is not for others
		add("TMPDIR", os.Getenv("TMPDIR"))
	}
	for _, v := range s.App.Env {
		env = append(env, v.Name+"="+put.Replace(v.Value))
	}
	add("PORT", portText(s))
	add("HOST", s.Host)
	add("SOCKET", s.Path)
	add("QUAYMASTER_URL", s.URL)
	return env
}
