package ports

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// denied says why port may not be bound, and what helps.
func denied(port uint16) (cause, remedy string) {
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		return "ports below 1024 are for root", "start it as root, or choose a port above 1023"
	}
	remedy = fmt.Sprintf("give it CAP_NET_BIND_SERVICE (in its systemd unit: AmbientCapabilities=CAP_NET_BIND_SERVICE; without one: "+
		"setcap cap_net_bind_service=+ep %s), lower the limit (sysctl net.ipv4.ip_unprivileged_port_start=%d), or let systemd open the socket", program(), port)
	present := kernel("ipv4/ip_unprivileged_port_start")
	low, err := strconv.Atoi(present)
	switch {
	case err != nil:
		return "ports below 1024 need CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start cannot be read)", remedy
	case int(port) >= low:
		return fmt.Sprintf("this port needs no privilege (ports below %s do, net.ipv4.ip_unprivileged_port_start), so a policy of the system forbids it", present),
			fmt.Sprintf("see SocketBindDeny= of its systemd unit, and SELinux (semanage port -a -t http_port_t -p tcp %d)", port)
	}
	return "ports below " + present + " (net.ipv4.ip_unprivileged_port_start) need CAP_NET_BIND_SERVICE", remedy
}

// program is the file that a person gives rights to.
func program() string {
	exe, err := os.Executable()
	if err != nil {
		return "FILE"
	}
	return exe
}

// kernel is a setting below /proc/sys/net; "" where it cannot be read.
func kernel(name string) string {
	text, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// absent says why ip is not to be had on this host, and what helps. ip is invalid where every address was asked for.
func absent(ip netip.Addr, err error) (cause, remedy string) {
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT) || ip.Is6() && kernel("ipv6/conf/all/disable_ipv6") == "1":
		return "IPv6 is off on this host (see net.ipv6.conf.all.disable_ipv6)", "write an IPv4 address or a bare port number"
	case !ip.IsValid():
		return plain(err), "write an address"
	}
	if name := downWith(ip); name != "" {
		return fmt.Sprintf("address %s belongs to interface %s, which is down", ip, name), fmt.Sprintf("bring it up with %q", asRoot("ip link set "+name+" up"))
	}
	if why := tentative(ip); why != "" {
		return fmt.Sprintf("address %s %s", ip, why), "see who else has it on this network"
	}
	remedy = "use one of these, or a bare port number for all of them"
	family := "ipv4"
	if ip.Is6() {
		family = "ipv6"
	}
	if now := kernel(family + "/ip_nonlocal_bind"); now != "" {
		remedy += fmt.Sprintf(", or let addresses be bound before they are there (sysctl net.%s.ip_nonlocal_bind=1, now %s)", family, now)
	}
	return fmt.Sprintf("this host has no address %s (it has %s)", ip, list(hostAddrs(), "none")), remedy
}

// downWith is the interface that has ip and is down; "" if there is none.
func downWith(ip netip.Addr) string {
	all, _ := net.Interfaces()
	for _, i := range all {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IP(ip.AsSlice())) && i.Flags&net.FlagUp == 0 {
				return i.Name
			}
		}
	}
	return ""
}

// tentative says that an IPv6 address is there but may not be used yet, or not at all.
func tentative(ip netip.Addr) string {
	if !ip.Is6() {
		return ""
	}
	const failed, trying = 0x08, 0x40 // IFA_F_DADFAILED, IFA_F_TENTATIVE
	text, _ := os.ReadFile("/proc/net/if_inet6")
	want := strings.ReplaceAll(ip.WithZone("").StringExpanded(), ":", "")
	for line := range strings.Lines(string(text)) {
		// address index prefix scope flags name
		field := strings.Fields(line)
		if len(field) < 6 || field[0] != want {
			continue
		}
		switch flags, _ := strconv.ParseUint(field[4], 16, 32); {
		case flags&failed != 0:
			return "is in use by another host (duplicate address detection failed)"
		case flags&trying != 0:
			return "is still being checked for duplicates"
		}
	}
	return ""
}

// hostAddrs lists the addresses of this host.
func hostAddrs() []string {
	addrs, _ := net.InterfaceAddrs()
	var out []string
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok {
			out = append(out, ip.IP.String())
		}
	}
	return out
}
