package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/config"
)

// client returns a client of the daemon that the flags, the environment or the configuration name.
func (s *shell) client() *api.Client { return api.NewClient(s.findSocket()) }

// findSocket is --socket, $QUAYMASTER_SOCKET, admin.socket of the configuration, or the default. A configuration with
// mistakes still tells its socket, since that is when people need status and reload.
func (s *shell) findSocket() string {
	if s.socket != "" {
		return s.socket
	}
	if env := os.Getenv("QUAYMASTER_SOCKET"); env != "" {
		return env
	}
	files, err := config.FindFiles(s.config)
	if err != nil {
		return config.DefaultSocket()
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		socket := socketIn(text)
		if socket == "" {
			continue
		}
		socket = strings.TrimPrefix(os.Expand(socket, variable), "unix:")
		if !filepath.IsAbs(socket) {
			socket = filepath.Join(filepath.Dir(name), socket)
		}
		return socket
	}
	return config.DefaultSocket()
}

// variable reads NAME or NAME:-default.
func variable(text string) string {
	name, otherwise, _ := strings.Cut(text, ":-")
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return otherwise
}

// socketIn reads admin.socket out of a configuration that may be broken elsewhere.
func socketIn(text []byte) string {
	var file struct {
		Admin struct {
			Socket string `yaml:"socket"`
		} `yaml:"admin"`
	}
	// A decode error still leaves what could be decoded.
	if _ = yaml.Unmarshal(text, &file); file.Admin.Socket != "" {
		return file.Admin.Socket
	}
	return socketByLine(text)
}

// socketByLine finds the socket in text that is not even YAML, by looking for the two lines.
func socketByLine(text []byte) string {
	inside := false
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			rest, ok := strings.CutPrefix(trimmed, "admin:")
			inside = ok
			// admin: {mode: "0600", socket: /run/x}
			for _, member := range strings.Split(strings.Trim(strings.TrimSpace(rest), "{}"), ",") {
				if trimmed = strings.TrimSpace(member); strings.HasPrefix(trimmed, "socket:") {
					break
				}
			}
		}
		if v, ok := strings.CutPrefix(trimmed, "socket:"); ok && inside {
			v, _, _ = strings.Cut(v, " #")
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}
