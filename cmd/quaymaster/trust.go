package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
	"github.com/quaymaster/quaymaster/internal/certs/ca"
	"github.com/quaymaster/quaymaster/internal/trust"
)

func (s *shell) trustVerb() *cobra.Command {
	var remove, print bool
	c := verb(
		"trust", "Make the programs of this machine trust the local CA, or no longer", "quaymaster trust", cobra.NoArgs,
		func(ctx context.Context, _ []string) error { return s.trust(ctx, remove, print) },
	)
	c.Long = `Puts the root of the local CA (certificate: internal) into the store of the system, and into those
of Firefox and Chromium of the person who runs this, where certutil is installed. Says of each store
what was done, or the command that does it. The store of the system needs root.

The root comes from the running daemon, or from its state folder.

Exit codes: 0 every store that was found has it (with --remove: has it no more), 1 one has not.`
	c.Flags().BoolVar(&remove, "remove", false, "take it out of the stores again")
	c.Flags().BoolVar(&print, "print", false, "only print the root, PEM: quaymaster trust --print > root.pem; curl --cacert root.pem ...")
	return c
}

// trusted is what `trust --json` prints.
type trusted struct {
	Name        string          `json:"name"`
	Fingerprint string          `json:"fingerprint"`
	NotAfter    time.Time       `json:"not_after"`
	Stores      []trust.Outcome `json:"stores"`
}

func (s *shell) trust(ctx context.Context, remove, print bool) error {
	root, err := s.localRoot(ctx)
	if err != nil {
		return err
	}
	if print {
		_, err := s.out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
		return err
	}
	again := strings.Join(append([]string{"quaymaster"}, os.Args[1:]...), " ")
	do := trust.Install
	if remove {
		do = trust.Remove
	}
	t := trusted{root.Subject.CommonName, ca.Fingerprint(root), root.NotAfter, do(ctx, root, again)}
	if s.json {
		err = s.printJSON(t)
	} else {
		s.printTrusted(&t)
	}
	for _, o := range t.Stores {
		if o.State == trust.Failed && err == nil {
			err = &coded{exitFailed, nil}
		}
	}
	return err
}

func (s *shell) printTrusted(t *trusted) {
	fmt.Fprintf(s.out, "%s, until %s\nSHA-256 %s\n", clean(t.Name), t.NotAfter.Format(time.DateOnly), t.Fingerprint)
	for _, o := range t.Stores {
		fmt.Fprintf(s.out, "  %-8s %s: %s\n", o.State, clean(o.Store), clean(o.Message))
		if o.Remedy != "" {
			fmt.Fprintf(s.out, "           do: %s\n", clean(o.Remedy))
		}
	}
}

// localRoot asks the daemon for the root of the local CA, or looks into the state folder when none answers.
func (s *shell) localRoot(ctx context.Context) (*x509.Certificate, error) {
	c := s.client()
	defer c.Close()
	var a api.Authority
	err := c.Get(ctx, "/v1/ca", &a)
	if err == nil {
		return oneCertificate([]byte(a.Root))
	}
	var away *api.Unreachable
	if !errors.As(err, &away) {
		return nil, cannot("have the root of the local CA", err)
	}
	var v verdict
	p, second := v.load(s.config)
	if second != nil {
		return nil, err
	}
	text, second := os.ReadFile(filepath.Join(p.Settings.StateDir, ca.PublicFile))
	if second != nil {
		return nil, fmt.Errorf("%w. The state folder has no root either: %w", err, second)
	}
	return oneCertificate(text)
}

func oneCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("cannot read the root of the local CA: it is not PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
