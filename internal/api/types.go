package api

import "time"

// Status is what GET /v1/status and `status --json` answer.
type Status struct {
	PID         int          `json:"pid"`
	Version     string       `json:"version"`
	State       string       `json:"state"` // starting, serving, degraded or draining
	Since       time.Time    `json:"since"` // of State
	Config      ConfigStatus `json:"config"`
	Connections Slots        `json:"connections"`
	Before      []Before     `json:"before,omitempty"` // replaced by upgrades, oldest first
	Problems    []Trouble    `json:"problems"`         // never null
}

// ConfigStatus says which configuration is in force. Error is why the newest reload was refused, "" if it was not.
type ConfigStatus struct {
	Files    []string  `json:"files"`
	Revision string    `json:"revision"`
	LoadedAt time.Time `json:"loaded_at"`
	Error    string    `json:"error"`
	// ConfirmBy is when an unconfirmed reload goes back by itself; absent when none waits.
	ConfirmBy *time.Time `json:"confirm_by,omitempty"`
}

// Before is a process that was replaced by an upgrade and still has connections.
type Before struct {
	PID         int       `json:"pid"`
	Connections int       `json:"connections"` // as it said last, at most a second ago
	Since       time.Time `json:"since"`
}

// Slots are the client connections at this moment and the most there may be.
type Slots struct {
	Active int `json:"active"`
	Max    int `json:"max"`
}

// Trouble is one thing that is not as the configuration wants it, and what to do.
type Trouble struct {
	Kind    string `json:"kind"`
	Object  string `json:"object"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// Port is one socket wanted or held: an element of GET /v1/ports and `ports --json`.
type Port struct {
	Proto   string     `json:"proto"`
	Address string     `json:"address"` // an IP; the path of a unix socket
	Port    int        `json:"port"`    // really bound; the wanted one while none is
	Wanted  string     `json:"wanted"`  // as configuration writes it: ":443"
	State   string     `json:"state"`   // bound, retrying, fallback, activated, leased, released or failed
	Since   time.Time  `json:"since"`
	Source  string     `json:"source"`
	Origin  string     `json:"origin"` // of the socket: own, systemd or predecessor; empty while there is none
	Routes  []string   `json:"routes"` // never null
	App     string     `json:"app"`
	Holder  *Holder    `json:"holder"` // who has it instead of us; null when we do or nobody knows
	Error   string     `json:"error"`
	Warning string     `json:"warning"` // of a port that is bound and yet may not be reached
	NextTry *time.Time `json:"next_try"`
}

// Holder is a process that listens on a port. What could not be looked up is empty.
type Holder struct {
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Command   string    `json:"command"`
	Exe       string    `json:"exe"`
	User      string    `json:"user"`
	Unit      string    `json:"unit"`      // of systemd
	Container string    `json:"container"` // its name, or as much as is known of it: its id, its address

	ContainerID string `json:"container_id"`
	Engine      string `json:"engine"`    // docker, podman, containerd, cri-o or lxc
	Helper      string `json:"helper"`    // the program that holds the port for a container: docker-proxy, conmon, ...
	StateDir    string `json:"state_dir"` // of another quaymaster
	Text        string `json:"text"`      // all of it in words
	Stop        string `json:"stop"`      // what makes it let go, in words; empty where that is not known
}

// Listening is one socket somebody listens on: an element of `ports who --json`.
type Listening struct {
	Proto   string  `json:"proto"`
	Address string  `json:"address"`
	Port    int     `json:"port"`
	Holder  *Holder `json:"holder"`
}

// PortEvent is one line of a port's history.
type PortEvent struct {
	Time    time.Time `json:"time"`
	State   string    `json:"state"`
	Address string    `json:"address"`
	Message string    `json:"message"`
}

// PortDetail is what GET /v1/ports/{port} answers: the socket of that number, others of it (another address, UDP) and
// what happened to them, oldest first.
type PortDetail struct {
	Port
	Others  []Port      `json:"others,omitempty"`
	History []PortEvent `json:"history"`
}

// Place is where an object is written. It is absent for what came by API.
type Place struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col,omitempty"`
}

// Route is one rule: an element of GET /v1/routes and `routes --json`.
type Route struct {
	Name     string   `json:"name"`
	Source   string   `json:"source"`
	Place    *Place   `json:"place,omitempty"`
	Priority int      `json:"priority"`
	Match    Match    `json:"match"`
	TLS      string   `json:"tls"`      // "" (plain clients) or the mode
	Action   string   `json:"action"`   // tunnel, forward, redirect, respond, files, block, by_name or internal
	Detail   string   `json:"detail"`   // what the action does, in a few words: a URL, a status, a folder
	Upstream string   `json:"upstream"` // "" where the action has none
	Targets  []Target `json:"targets"`  // never null
	OnRemove string   `json:"on_remove"`
}

// Match repeats the conditions of a route under the names that configuration uses.
type Match struct {
	Ports     []string          `json:"ports"`
	Domains   []string          `json:"domains"`
	Path      []string          `json:"path"`
	Methods   []string          `json:"methods,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	Query     map[string]string `json:"query,omitempty"`
	ClientIPs []string          `json:"client_ips,omitempty"`
	Protocols []string          `json:"protocols,omitempty"`
	Preview   string            `json:"preview,omitempty"` // in words, what a route of a preview wants besides
}

// Target is one place of an upstream and how it is.
type Target struct {
	Target string    `json:"target"`
	State  string    `json:"state"` // up, down or unknown
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"`
	Active int       `json:"active"`
	Idle   int       `json:"idle"`
	Weight int       `json:"weight"`
}

// Upstream is a set of targets and how each is.
type Upstream struct {
	Name    string   `json:"name"`
	Targets []Target `json:"targets"`
}

// Connection is one client connection: an element of GET /v1/connections.
type Connection struct {
	ID     string    `json:"id"`
	Client string    `json:"client"`
	Local  string    `json:"local"`
	State  string    `json:"state"`
	TLS    string    `json:"tls,omitempty"`         // version, where it ends here
	Name   string    `json:"server_name,omitempty"` // that the client asked for
	Since  time.Time `json:"since"`
	Route  string    `json:"route"`
	Target string    `json:"target"`
}

// Event is one thing that happened: port.held, port.fallback, config.refused, config.committed, drain.cut ...
type Event struct {
	ID      uint64    `json:"id"` // counts from 1 since the start of the daemon
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Object  string    `json:"object"`
	Message string    `json:"message"`
}

// Question is what GET /v1/explain asks. A request id stands alone; otherwise Host and Port are set.
type Question struct {
	Text      string // as asked
	RequestID string
	Scheme    string // http, https; "" = a bare HOST:PORT, judged as a connection
	Host      string // lower case, without port
	Port      uint16
	Target    string // path and query, as written; "/" if none
	Method    string
	Client    string            // an IP; "" = any
	Header    map[string]string // lower-case names
}

// Explanation is the answer: what would happen now, and why nothing else.
type Explanation struct {
	Question    string        `json:"question"`
	Outcome     string        `json:"outcome"` // one sentence: what would happen now
	Port        *Port         `json:"port"`    // the socket that would take it; null: none
	Stage       string        `json:"stage"`   // connection or request
	Route       string        `json:"route"`   // "" = none
	Source      string        `json:"source"`
	Place       *Place        `json:"place,omitempty"`
	Action      string        `json:"action"`
	Certificate string        `json:"certificate"`
	Upstream    string        `json:"upstream"`
	Target      string        `json:"target"` // that would be picked
	Targets     []Target      `json:"targets"`
	Steps       []ExplainStep `json:"steps"` // every candidate in the order it is asked
	Notes       []string      `json:"notes,omitempty"`
}

// ExplainStep is one candidate and why it is the one or is not.
type ExplainStep struct {
	Route   string `json:"route"`
	Matched bool   `json:"matched"`
	Reason  string `json:"reason"`
}

// Change is what an edit or a reload did, or would do.
type Change struct {
	Revision  string     `json:"revision"`
	Changes   []Item     `json:"changes"`             // never null
	Touched   int        `json:"connections_touched"` // that it disturbs
	Warnings  []Finding  `json:"warnings,omitempty"`
	DryRun    bool       `json:"dry_run,omitempty"`
	ConfirmBy *time.Time `json:"confirm_by,omitempty"`
}

// Item is one object that differs.
type Item struct {
	Kind   string `json:"kind"` // port, route, upstream or settings
	Name   string `json:"name"`
	Change string `json:"change"`           // added, removed or changed
	Detail string `json:"detail,omitempty"` // the members that differ
}

// String is the difference in one line.
func (i Item) String() string {
	s := i.Kind + " " + i.Name + " " + i.Change
	if i.Detail != "" {
		s += ": " + i.Detail
	}
	return s
}

// ConfigView is what GET /v1/config answers: the files, the API's own layer (what PUT /v1/config replaces) and both
// together, expanded, secrets hidden.
type ConfigView struct {
	ConfigStatus
	Layer     any `json:"layer"`
	Effective any `json:"effective"`
}

// Confirmed is the answer to a confirmation: the revision that stays.
type Confirmed struct {
	Revision string `json:"revision"`
}

// Stopping is the answer to POST /v1/stop: the drain has begun in the process PID.
type Stopping struct {
	PID   int    `json:"pid"`
	State string `json:"state"`
}
