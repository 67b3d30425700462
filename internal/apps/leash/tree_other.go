//go:build !linux

package leash

import "syscall"

// adopt does nothing: the process group has to do.
func adopt() {}

// attributes: the program leads a group of its own, by which all that it starts is found.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// send signals the group.
func (k *keeper) send(signals ...syscall.Signal) {
	for _, s := range signals {
		_ = syscall.Kill(-k.pid, s)
	}
}

// left reports whether anybody of the group is there.
func (k *keeper) left() bool { return syscall.Kill(-k.pid, 0) == nil }

// sweep ends those of the group whose parent has ended: they are no children of ours.
func (k *keeper) sweep() { k.send(syscall.SIGKILL) }
