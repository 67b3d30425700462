//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listener is a TCP socket that listens in this network namespace, as the kernel knows it.
type listener struct {
	port  int
	any   bool // on every address
	inode uint32
}

// question is a netlink message that asks for the TCP sockets of a family and some states (linux/inet_diag.h).
type question struct {
	head   unix.NlMsghdr
	family uint8
	proto  uint8
	_      [2]uint8
	states uint32
	_      [48]byte // which socket: any
}

const (
	byFamily = 20 // SOCK_DIAG_BY_FAMILY
	listens  = 10 // TCP_LISTEN
	answer   = 72 // length of inet_diag_msg
)

// listening asks the kernel. /proc/net/tcp would say the same, after a walk over every connection there ever was lately.
func listening() (out []listener, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		q := question{family: family, proto: unix.IPPROTO_TCP, states: 1 << listens}
		q.head = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(q)), Type: byFamily, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP}
		b := unsafe.Slice((*byte)(unsafe.Pointer(&q)), unsafe.Sizeof(q))
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, err
		}
		if out, err = answers(fd, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// answers reads one dump to its end.
func answers(fd int, out []listener) ([]listener, error) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			switch kind := binary.NativeEndian.Uint16(b[4:]); {
			case size < unix.NLMSG_HDRLEN || size > len(b):
				return nil, errors.New("netlink: a cut message")
			case kind == unix.NLMSG_DONE:
				return out, nil
			case kind == unix.NLMSG_ERROR:
				return nil, fmt.Errorf("netlink: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))))
			case size >= unix.NLMSG_HDRLEN+answer:
				out = append(out, socketOf(b[unix.NLMSG_HDRLEN:]))
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// socketOf reads an inet_diag_msg: four bytes, then ports and addresses in network order, and at the end the inode.
func socketOf(m []byte) listener {
	l := listener{port: int(binary.BigEndian.Uint16(m[4:])), any: true, inode: binary.NativeEndian.Uint32(m[68:])}
	for _, b := range m[8:24] {
		l.any = l.any && b == 0
	}
	return l
}
