package record

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	checkMost  = 90 * time.Second
	checkEvery = 2 * time.Second
	queryTime  = 5 * time.Second
	maxServers = 12
	maxAliases = 8
)

// A Check looks whether the servers that answer for a zone have a record. Its zero value asks those that the system's
// resolver names.
type Check struct {
	// Servers are the addresses, host:port, that answer for name, and nil when none is known. nil: the resolver is asked.
	Servers     func(ctx context.Context, name string) ([]string, error)
	Most, Every time.Duration // how long, and how often; 0 = 90 s, 2 s
}

// Wait returns nil once every server that answers has the record, and why not when the bound is over, when nobody can be
// asked, or when ctx ends. The CA may see it all the same.
func (c *Check) Wait(ctx context.Context, r Record) error {
	most, every := c.Most, c.Every
	if most <= 0 {
		most = checkMost
	}
	if every <= 0 {
		every = checkEvery
	}
	ctx, cancel := context.WithTimeout(ctx, most+queryTime) // a look is not cut short by the end of the time
	defer cancel()
	over := time.NewTimer(most)
	defer over.Stop()
	pause := time.NewTicker(every)
	defer pause.Stop()
	for {
		missing, err := c.missing(ctx, r)
		if err != nil || missing == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return fmt.Errorf("TXT %s was not to be seen everywhere within %v: %w", r.Name, most, missing)
		case <-pause.C:
		}
	}
}

// missing says which server does not have the record; nil when all that answer do. An error is that nobody can be asked.
func (c *Check) missing(ctx context.Context, r Record) (missing, err error) {
	name := dns.Fqdn(r.Name)
	for range maxAliases {
		servers, err := c.servers(ctx, strings.TrimSuffix(name, "."))
		if err != nil || len(servers) == 0 {
			return nil, fmt.Errorf("TXT %s cannot be looked for: no server is known that answers for it (%w)", r.Name, cmpErr(err))
		}
		alias, missing := look(ctx, servers, name, r.Value)
		if alias == "" {
			return missing, nil
		}
		name = alias
	}
	return fmt.Errorf("TXT %s is an alias of an alias, more than %d times", r.Name, maxAliases), nil
}

var errNone = errors.New("none found")

func cmpErr(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// look asks each server. It returns the name's alias when it is one.
func look(ctx context.Context, servers []string, name, value string) (alias string, missing error) {
	answered := 0
	for _, server := range servers[:min(len(servers), maxServers)] {
		values, to, err := txt(ctx, server, name)
		switch {
		case err != nil:
			if missing == nil {
				missing = fmt.Errorf("%s: %w", server, err)
			}
			continue
		case to != "" && len(values) == 0:
			return to, nil
		}
		answered++
		if !slices.Contains(values, value) {
			return "", fmt.Errorf("%s does not have it", server)
		}
	}
	if answered > 0 {
		return "", nil // servers that are down hold up nobody
	}
	return "", missing
}

// txt asks one server for the values of a name, or for what it is an alias of.
func txt(ctx context.Context, server, name string) (values []string, alias string, err error) {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeTXT)
	m.RecursionDesired = false
	reply, err := ask(ctx, server, m)
	if err != nil {
		return nil, "", err
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, "", fmt.Errorf("it says %s", dns.RcodeToString[reply.Rcode])
	}
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.TXT:
			values = append(values, strings.Join(rr.Txt, ""))
		case *dns.CNAME:
			alias = rr.Target
		}
	}
	return values, alias, nil
}

// ask asks over UDP, and over TCP where the answer was cut.
func ask(ctx context.Context, server string, m *dns.Msg) (*dns.Msg, error) {
	for _, network := range []string{"udp", "tcp"} {
		c := &dns.Client{Net: network, Timeout: queryTime}
		reply, _, err := c.ExchangeContext(ctx, m, server)
		if err != nil {
			return nil, err
		}
		if !reply.Truncated {
			return reply, nil
		}
	}
	return nil, errors.New("its answer is cut short")
}

// servers are those that answer for name, by the system's resolver: the name servers of the nearest zone above it.
func (c *Check) servers(ctx context.Context, name string) ([]string, error) {
	if c.Servers != nil {
		return c.Servers(ctx, name)
	}
	ctx, cancel := context.WithTimeout(ctx, 4*queryTime)
	defer cancel()
	var last error
	for zone := name; strings.Contains(zone, "."); _, zone, _ = strings.Cut(zone, ".") {
		found, err := net.DefaultResolver.LookupNS(ctx, zone)
		if err != nil {
			last = err
			continue
		}
		var out []string
		for _, ns := range found {
			addrs, err := net.DefaultResolver.LookupHost(ctx, ns.Host)
			if err != nil {
				last = err
				continue
			}
			for _, a := range addrs {
				out = append(out, net.JoinHostPort(a, "53"))
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, last
}
