package api

import "github.com/quaymaster/quaymaster/internal/ports"

// Who lists the sockets that anybody listens on at a TCP port of this host, and by which process. It asks the kernel,
// not a daemon. An error says which command can tell instead.
func Who(port uint16) ([]Listening, error) {
	found, err := ports.Who("tcp", port)
	if err != nil {
		return nil, err
	}
	out := make([]Listening, 0, len(found))
	for _, h := range found {
		l := Listening{Proto: "tcp", Port: int(port), Holder: &Holder{
			PID: h.Pid, Started: h.Started, Command: h.Command, Exe: h.Exe, User: h.User, Unit: h.Unit, Container: h.Container,
		}}
		if h.Addr.IsValid() {
			l.Address = h.Addr.Addr().String()
		}
		out = append(out, l)
	}
	return out, nil
}
