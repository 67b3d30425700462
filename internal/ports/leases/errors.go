package leases

import (
	"fmt"
	"strings"
	"time"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// maxShown bounds the ports that one error lists.
const maxShown = 16

// An ExhaustedError says that no port of the range is left, and who has each.
type ExhaustedError struct {
	Range plan.PortRange
	Who   []string // one for each port, lowest first: "32100 leased to web"
}

func (e *ExhaustedError) Error() string {
	who := e.Who
	if more := len(who) - maxShown; more > 0 {
		who = append(who[:maxShown:maxShown], fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("none of app_ports %s is free (%s); give one back with \"quaymaster ports release NAME\", or widen app_ports",
		e.Range, strings.Join(who, ", "))
}

// A BusyError says that the port which a name has is held by somebody else.
type BusyError struct {
	Name string
	Port uint16
	Who  string

	key string    // Who, without the words that change from look to look
	at  time.Time // of the attempt
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("port %d of %s is %s; stop that, or take another port with \"quaymaster ports lease %s --new\"",
		e.Port, e.Name, e.Who, e.Name)
}

// A StoreError says that a change could not be written down, and so was not made.
type StoreError struct {
	What string // "the lease of web"
	Err  error
}

func (e *StoreError) Error() string {
	return fmt.Sprintf("%s could not be written down, and would be forgotten at the next start: %v", e.What, e.Err)
}

// Unwrap gives the error of the store.
func (e *StoreError) Unwrap() error { return e.Err }

// A NameError says that a name is none that an app can have.
type NameError struct{ Name string }

func (e *NameError) Error() string {
	name := e.Name
	if len(name) > 80 {
		name = name[:80] + "..."
	}
	return fmt.Sprintf("%q is no name of an app: that has 1 to 63 letters a-z, digits and dashes, and no dash at an end", name)
}

// checkName wants a DNS label in lower case (RFC 1123, section 2.1).
func checkName(name string) error {
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return &NameError{name}
	}
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return &NameError{name}
		}
	}
	return nil
}
