package holder

import "strconv"

// Brief is the holder in two words, where it was named at length before: nginx (pid 812).
func (h *Holder) Brief() string { return h.name + " (pid " + strconv.Itoa(h.Pid) + ")" }
