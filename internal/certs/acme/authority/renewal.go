package authority

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// ErrNoRenewalInfo says that the CA does not tell when to renew.
var ErrNoRenewalInfo = errors.New("the CA has no renewal information (RFC 9773)")

const renewalTime = 30 * time.Second

// A Window is when a CA would have a certificate renewed (RFC 9773 section 4.2).
type Window struct {
	Start, End time.Time
	Why        string        // a page for people; mostly empty
	Again      time.Duration // when to ask again, as the CA says; 0 = it does not
}

// Window asks the CA when leaf, which it issued, is to be renewed.
func (c *CA) Window(ctx context.Context, leaf *x509.Certificate) (Window, error) {
	ctx, cancel := context.WithTimeout(ctx, renewalTime)
	defer cancel()
	d, err := c.ready(ctx)
	if err != nil {
		return Window{}, err
	}
	if d.directory.RenewalInfo == "" {
		return Window{}, ErrNoRenewalInfo
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		return Window{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.directory.RenewalInfo+"/"+id, nil)
	if err != nil {
		return Window{}, err
	}
	req.Header.Set("User-Agent", "quaymaster")
	resp, err := c.web.Do(req)
	if err != nil {
		return Window{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return Window{}, err
	}
	again := retryAfter(resp.Header.Get("Retry-After"), c.o.Now())
	if resp.StatusCode != http.StatusOK {
		err := httpError(resp.StatusCode, resp.Header.Get("Content-Type"), text)
		if p, ok := problemOf(err); ok {
			err = &statusError{resp.StatusCode, said(p)}
		}
		return Window{Again: again}, err
	}
	var info struct {
		SuggestedWindow struct{ Start, End time.Time }
		ExplanationURL  string
	}
	if err := json.Unmarshal(text, &info); err != nil {
		return Window{Again: again}, fmt.Errorf("renewal information: %s", shorten(err.Error()))
	}
	w := Window{Start: info.SuggestedWindow.Start, End: info.SuggestedWindow.End, Why: shorten(info.ExplanationURL), Again: again}
	if w.Start.IsZero() || !w.End.After(w.Start) {
		return Window{Again: again}, fmt.Errorf("renewal information: a window from %v to %v is none", w.Start, w.End)
	}
	return w, nil
}
