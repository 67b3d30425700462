package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/internal/api"
)

func (s *shell) certsVerb() *cobra.Command {
	c := verb(
		"certs", "List every certificate that the daemon has or wants", "quaymaster certs --json", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			return show(ctx, s, "/v1/certificates", func(list *[]api.Certificate) { s.printCerts(*list) })
		},
	)
	renew := verb(
		"renew NAME", "Make or order a certificate anew, or read its files again", "quaymaster certs renew app.example.com",
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error { return s.renew(ctx, args[0]) },
	)
	renew.Long = `Begins at once, whatever the schedule says, and does not wait for a CA: "quaymaster certs" shows
how it goes. The certificate that is in use serves until the new one is there.`
	c.AddCommand(renew)
	return c
}

func (s *shell) printCerts(list []api.Certificate) {
	rows := make([][]string, 0, len(list))
	for i := range list {
		c := &list[i]
		rows = append(rows, []string{
			certName(c), c.Source, c.State, ahead(c.NotAfter), ahead(c.RenewAt), c.Issuer, strings.Join(c.Users, ", "), note(c),
		})
	}
	table(s.out, "NAME SOURCE STATE ENDS-IN RENEWED-IN ISSUER USERS NOTE", rows)
}

// certName is the first name, and how many more there are.
func certName(c *api.Certificate) string {
	if len(c.Names) > 1 {
		return fmt.Sprintf("%s +%d", c.Name, len(c.Names)-1)
	}
	return c.Name
}

// note is what a person should read about a certificate, if anything.
func note(c *api.Certificate) string {
	text := c.Error
	if text == "" {
		text = c.Warning
	}
	if c.NextTry != nil {
		text = strings.TrimSpace(text + " (next try in " + span(time.Until(*c.NextTry)) + ")")
	}
	return text
}

// ahead is how far away a moment is.
func ahead(t *time.Time) string {
	switch {
	case t == nil:
		return ""
	case time.Until(*t) < 0:
		return "over"
	}
	return span(time.Until(*t))
}

func (s *shell) renew(ctx context.Context, name string) error {
	c := s.client()
	defer c.Close()
	var raw json.RawMessage
	if err := c.Do(ctx, http.MethodPost, "/v1/certificates/"+url.PathEscape(name)+"/renew", "", nil, &raw); err != nil {
		return cannot("renew the certificate of "+name, err)
	}
	if s.json {
		return s.printJSON(raw)
	}
	var got api.Certificate
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("cannot read the daemon's answer: %w; are both of one version?", err)
	}
	switch {
	case got.Source == "auto":
		fmt.Fprintf(s.out, "%s: an order begins; \"quaymaster certs\" shows how it goes\n", name)
	case got.NotAfter != nil:
		fmt.Fprintf(s.out, "%s: valid until %s\n", name, got.NotAfter.Local().Format(time.DateTime))
	}
	return nil
}
