package api

import "github.com/quaymaster/quaymaster/internal/ports"

// Who lists the sockets that anybody has at a TCP or UDP port of this host, and by which process. It asks the kernel, not
// a daemon. An error says which command can tell instead.
func Who(port uint16) ([]Listening, error) {
	found, err := ports.Who("", port)
	if err != nil {
		return nil, err
	}
	out := make([]Listening, 0, len(found))
	for i := range found {
		h := &found[i]
		l := Listening{Proto: h.Proto, Port: int(port), Holder: HolderOf(h)}
		if h.Addr.IsValid() {
			l.Address = h.Addr.Addr().String()
		}
		out = append(out, l)
	}
	return out, nil
}

// HolderOf is h as the contract has it; nil for nil.
func HolderOf(h *ports.Holder) *Holder {
	if h == nil {
		return nil
	}
	return &Holder{
		PID: h.Pid, Started: h.Started, Command: h.Command, Exe: h.Exe, User: h.User, Unit: h.Unit, Container: h.Container,
		ContainerID: h.ContainerID, Engine: h.Engine, Helper: h.Helper, StateDir: h.StateDir, Text: h.String(), Stop: h.Stop(),
	}
}
