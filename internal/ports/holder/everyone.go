package holder

import "strconv"

// Starter is the program that would start h again when it ends; "" where none is known. Systemd is told by Unit.
func (h *Holder) Starter() string {
	if h.starter == nil {
		return ""
	}
	return h.starter.name
}

// Brief is the holder in two words, where it was named at length before: nginx (pid 812).
func (h *Holder) Brief() string {
	if h.Pid == 0 {
		return "a process of user " + h.User
	}
	return h.name + " (pid " + strconv.Itoa(h.Pid) + ")"
}
