package holder

import (
	"encoding/json"
	"net/netip"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

const maxContainers = 1024 // of one engine that are looked through

// docker is what docker keeps of a container in its folder: config.v2.json.
type docker struct {
	ID    string
	Name  string
	State struct{ Running bool }

	NetworkSettings struct {
		Networks map[string]*struct{ IPAddress, GlobalIPv6Address string }
		Ports    map[string][]struct{ HostPort string } // by 80/tcp
	}
}

// dockerFolders are where a docker of that user keeps its containers.
func (t host) dockerFolders(uid int) []string {
	var settings struct {
		Root string `json:"data-root"`
	}
	if uid > 0 {
		u, err := user.LookupId(strconv.Itoa(uid))
		if err != nil {
			return nil
		}
		return []string{filepath.Join(u.HomeDir, ".local/share/docker/containers")}
	}
	folders := []string{"/var/lib/docker/containers", "/var/snap/docker/common/var-lib-docker/containers"}
	if json.Unmarshal([]byte(t.read("/etc/docker/daemon.json")), &settings) == nil && settings.Root != "" {
		folders = append([]string{filepath.Join(settings.Root, "containers")}, folders...)
	}
	return folders
}

func (t host) docker(folder, id string) (docker, bool) {
	var c docker
	err := json.Unmarshal([]byte(t.read(filepath.Join(folder, id, "config.v2.json"))), &c)
	return c, err == nil && c.ID == id && c.Name != ""
}

func (t host) dockerByID(uid int, id string) (docker, bool) {
	for _, folder := range t.dockerFolders(uid) {
		if c, ok := t.docker(folder, id); ok {
			return c, true
		}
	}
	return docker{}, false
}

// dockerByAddress finds the running container of that address.
func (t host) dockerByAddress(uid int, ip netip.Addr) (docker, bool) {
	return t.dockerWhere(t.dockerFolders(uid), func(c *docker) bool {
		for _, n := range c.NetworkSettings.Networks {
			if n != nil && (n.IPAddress == ip.String() || n.GlobalIPv6Address == ip.String()) {
				return true
			}
		}
		return false
	})
}

// dockerByPort finds the running container that publishes a port, in the folders of a docker with these arguments.
func (t host) dockerByPort(uid int, args []string, proto, port string) (docker, bool) {
	folders := t.dockerFolders(uid)
	if root := flag(args, "--data-root", "-g"); root != "" {
		folders = []string{filepath.Join(root, "containers")}
	}
	return t.dockerWhere(folders, func(c *docker) bool {
		for inside, outside := range c.NetworkSettings.Ports {
			for _, o := range outside {
				if o.HostPort == port && strings.HasSuffix(inside, "/"+proto) {
					return true
				}
			}
		}
		return false
	})
}

// dockerWhere finds a running container.
func (t host) dockerWhere(folders []string, is func(*docker) bool) (docker, bool) {
	for _, folder := range folders {
		ids, _ := t.names(folder)
		for _, id := range ids[:min(len(ids), maxContainers)] {
			if c, ok := t.docker(folder, id); ok && c.State.Running && is(&c) {
				return c, true
			}
		}
	}
	return docker{}, false
}

// nameCRI finds the names that containerd and cri-o note beside a container that they run.
func (t host) nameCRI(h *Holder) {
	files := []string{"/run/containers/storage/overlay-containers/" + h.ContainerID + "/userdata/config.json"}
	for _, dir := range []string{"/run/containerd", "/run/k3s/containerd"} {
		for _, space := range []string{"k8s.io", "default"} {
			files = append(files, dir+"/io.containerd.runtime.v2.task/"+space+"/"+h.ContainerID+"/config.json")
		}
	}
	var bundle struct{ Annotations map[string]string }
	for _, f := range files {
		if text := t.read(f); text != "" && json.Unmarshal([]byte(text), &bundle) == nil {
			break
		}
	}
	note := func(keys ...string) string {
		for _, k := range keys {
			if v := bundle.Annotations[k]; v != "" {
				return clean(v)
			}
		}
		return ""
	}
	if name := note("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"); name != "" {
		h.Container = name
	}
	pod := note("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
	if space := note("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"); pod != "" && space != "" {
		h.pod = strings.Join([]string{space, pod}, "/")
	}
}
