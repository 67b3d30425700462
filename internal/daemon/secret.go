package daemon

import (
	"crypto/hmac"
	"crypto/sha256"
	"os"
	"strings"
)

// machineID is the file that names a machine for good (machine-id(5)). Its content is confidential: it is a key here.
const machineID = "/etc/machine-id"

// stickyKey is the key under which sticky cookies name their targets: the same after a restart and in a successor, and
// another one for each machine and state folder. It is nil, which means a random one, where the machine has no id.
func stickyKey(stateDir string) []byte {
	id, err := os.ReadFile(machineID)
	if err != nil || strings.TrimSpace(string(id)) == "" {
		return nil
	}
	h := hmac.New(sha256.New, id)
	h.Write([]byte("quaymaster sticky " + stateDir))
	return h.Sum(nil)
}
