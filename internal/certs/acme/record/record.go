// Package record puts the records of dns-01 (RFC 8555 section 8.4) into the DNS and takes them out again: by a program of
// the operator's (Hook) or by dynamic updates (Update, RFC 2136). It also looks whether a record is to be seen (Check).
//
// It promises that every step ends, within a bound or with its context, that a program which does not end is killed with
// all that it started, that other records of the same name are left alone, and that looking never prevents anything: what
// cannot be seen is a warning.
package record

import (
	"context"

	"github.com/quaymaster/quaymaster/internal/plan"
)

// A Record is one TXT record.
type Record struct {
	Name  string // "_acme-challenge.example.com", without a dot at the end
	Value string
}

// A Provider makes and removes records.
type Provider interface {
	// Present makes r. Others of the same name stay: example.com and *.example.com share one.
	Present(ctx context.Context, r Record) error
	// Cleanup removes r and no other. One that is not there is no error.
	Cleanup(ctx context.Context, r Record) error
}

// New is the provider that p names; nil when it names none.
func New(p plan.DNSProvider) Provider {
	switch {
	case p.Exec != "":
		return &Hook{Program: p.Exec}
	case p.Server != "":
		return &Update{Server: p.Server, Zone: p.Zone, Key: p.TSIGKey, Secret: string(p.TSIGSecret)}
	}
	return nil
}
