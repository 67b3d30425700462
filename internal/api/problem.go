package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Problem is an error as RFC 9457 writes it. It is what the API answers with and what the client returns.
type Problem struct {
	Type   string    `json:"type"` // one of the Kind constants, or about:blank
	Title  string    `json:"title"`
	Status int       `json:"status"`
	Detail string    `json:"detail,omitempty"`
	Errors []Finding `json:"errors,omitempty"`
}

// Finding is one fault of a configuration: where it stands, what is wrong and what to write instead.
type Finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Col     int    `json:"col"`
	Path    string `json:"path"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// The types of problems that a client branches on.
const (
	Invalid     = "urn:quaymaster:invalid"      // 422: the configuration has faults
	Unavailable = "urn:quaymaster:unavailable"  // 409: valid, but a port could not be had
	Stale       = "urn:quaymaster:stale"        // 412: made against another revision
	InFile      = "urn:quaymaster:held-by-file" // 409: a file holds the object
	Leashed     = "urn:quaymaster:leashed"      // 409: the object hangs on another leash

	InContainer = "urn:quaymaster:held-by-container" // 409: the labels of a container make the object
)

func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = strings.ToLower(p.Title)
	}
	for _, f := range p.Errors {
		text += "\n" + f.String()
	}
	return text
}

// String is the fault as a compiler would print it.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		fmt.Fprintf(&b, "%s:", f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", f.Line, f.Col)
		}
		b.WriteByte(' ')
	}
	if f.Path != "" {
		fmt.Fprintf(&b, "%s: ", f.Path)
	}
	b.WriteString(f.Message)
	if f.Remedy != "" {
		fmt.Fprintf(&b, "; %s", f.Remedy)
	}
	return b.String()
}

// problem makes an answer that is told apart by its status alone.
func problem(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// answer writes the problem.
func (p *Problem) answer(w http.ResponseWriter) {
	if p.Status < 400 || p.Status > 599 {
		p.Status = http.StatusInternalServerError
	}
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	body, _ := json.Marshal(p) // strings and numbers alone
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer") // RFC 9110, section 11.6.1
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}
