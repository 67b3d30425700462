package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/quaymaster/quaymaster/internal/plan"
)

const (
	orderTime = 10 * time.Minute
	pollFirst = 250 * time.Millisecond
	pollMost  = 30 * time.Second
	leaveTime = 3 * time.Second // to tell the CA that an order is given up
	maxToken  = 256             // bytes of a challenge's token
)

// A Wish is one certificate, for one name.
type Wish struct {
	Name       string            // DNS name, "*.d", or an address
	Replaces   *x509.Certificate // what it renews, if this CA issued that; nil = nothing
	Challenges []Challenge       // that can be answered at present, in order of preference
	// Trying hears which challenge is tried, and GaveUp which did not succeed while another is left. Both may be nil.
	Trying func(challenge string)
	GaveUp func(challenge string, why error)
}

// A Challenge is one way to prove that a name is ours.
type Challenge struct {
	Type string // as in RFC 8555
	// Present makes the answer to ch available until end is called, which is once and in any case.
	Present func(ctx context.Context, ch acme.Challenge) (end func(), err error)
}

// Issued is a certificate with its key.
type Issued struct {
	Certificate *tls.Certificate // with its Leaf
	Key, Chain  []byte           // PEM
	Challenge   string           // by which it was validated; "" when the CA remembered
}

// Order gets a certificate. A challenge that does not succeed is followed by the next. The error is a *Failure, or that of
// ctx; whatever was presented has ended by then.
func (c *CA) Order(ctx context.Context, w *Wish) (*Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	ctx, end := within(ctx, orderBudget)
	defer end()
	t := &try{c: c, w: w, left: slices.Clone(w.Challenges)}
	if w.Replaces != nil {
		t.replaces, _ = acme.ARIUniqueIdentifier(w.Replaces)
	}
	var given []error // why challenges were given up
	for anew := true; ; {
		err := t.once(ctx)
		var next *nextError
		switch {
		case err == nil:
			c.gate.opened()
			return t.issued, nil
		case errors.As(err, &next):
			given = append(given, next.why)
			t.left = slices.DeleteFunc(t.left, func(ch Challenge) bool { return ch.Type == next.challenge })
			if len(t.left) > 0 && ctx.Err() == nil {
				if w.GaveUp != nil {
					w.GaveUp(next.challenge, next.why)
				}
				continue
			}
			return nil, join(given)
		case anew && is(err, acme.ProblemTypeAccountDoesNotExist):
			anew = false
			c.lost(t.desk)
			continue
		}
		return nil, join(append(given, err))
	}
}

// join is one error of several; the last is what the schedule goes by.
func join(all []error) error {
	if len(all) == 1 {
		return all[0]
	}
	var last *Failure
	if !errors.As(all[len(all)-1], &last) {
		return all[len(all)-1]
	}
	return &several{all: all, last: last}
}

type several struct {
	all  []error
	last *Failure
}

func (s *several) Error() string {
	texts := make([]string, len(s.all))
	for i, e := range s.all {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "; then ")
}

// Unwrap gives the last.
func (s *several) Unwrap() error { return s.last }

// A nextError says that one challenge did not succeed, which another may.
type nextError struct {
	challenge string
	why       error
}

func (e *nextError) Error() string { return e.why.Error() }

// try is one wish on its way.
type try struct {
	c        *CA
	w        *Wish
	desk     *desk
	replaces string
	left     []Challenge
	issued   *Issued
	by       string // the challenge that was tried last
	begun    bool   // the CA was told to look
}

// once makes one order and brings it to its end.
func (t *try) once(ctx context.Context) error {
	d, err := t.c.ready(ctx)
	if err != nil {
		return err
	}
	t.desk = d
	ctx, heard := listen(ctx)
	order, err := t.begin(ctx)
	if err != nil {
		return t.c.failure(ctx, heard, t.w.Name, "order", err)
	}
	for _, url := range order.Authorizations {
		if err := t.authorize(ctx, heard, url); err != nil {
			return err
		}
	}
	if err := t.finish(ctx, order); err != nil {
		return t.c.failure(ctx, heard, t.w.Name, "finalize", err)
	}
	return nil
}

// begin asks for the order. Some CAs refuse one that replaces what they do not know or have seen replaced.
func (t *try) begin(ctx context.Context) (acme.Order, error) {
	id := identifier(t.w.Name)
	profile := t.c.Issuer.Profile
	if profile != "" && !offered(t.desk.directory, profile) {
		return acme.Order{}, &localError{fmt.Errorf("the CA has no profile %q (it has: %s); correct acme.issuers[].profile", profile, profiles(t.desk.directory))}
	}
	ask := acme.Order{Identifiers: []acme.Identifier{id}, Profile: profile}
	if t.desk.directory.RenewalInfo != "" {
		ask.Replaces = t.replaces
	}
	order, err := t.desk.client.NewOrder(ctx, t.desk.account, ask)
	if p, ok := problemOf(err); ok && ask.Replaces != "" && p.Type != acme.ProblemTypeRateLimited &&
		p.Type != acme.ProblemTypeAccountDoesNotExist && p.Status >= 400 && p.Status < 500 {
		ask.Replaces, t.replaces = "", ""
		order, err = t.desk.client.NewOrder(ctx, t.desk.account, ask)
	}
	return order, err
}

func offered(d acme.Directory, profile string) bool {
	if d.Meta == nil {
		return false
	}
	_, ok := d.Meta.Profiles[profile]
	return ok
}

func profiles(d acme.Directory) string {
	if d.Meta == nil || len(d.Meta.Profiles) == 0 {
		return "none"
	}
	var names []string
	for n := range d.Meta.Profiles {
		names = append(names, n)
	}
	slices.Sort(names)
	return shorten(strings.Join(names, ", "))
}

// authorize proves one identifier by the first challenge that the CA offers and that can be presented.
func (t *try) authorize(ctx context.Context, heard *ear, url string) error {
	fail := func(doing string, err error) error { return t.c.failure(ctx, heard, t.w.Name, doing, err) }
	authz, err := t.desk.client.GetAuthorization(ctx, t.desk.account, url)
	if err != nil {
		return fail("order", err)
	}
	if authz.Status == acme.StatusValid {
		return nil
	}
	if authz.Status != acme.StatusPending {
		return fail("order", fmt.Errorf("the CA says at once that the authorization is %s", authz.Status))
	}
	var offers []string
	for _, ch := range authz.Challenges {
		offers = append(offers, ch.Type)
	}
	for _, way := range t.left {
		i := slices.IndexFunc(authz.Challenges, func(ch acme.Challenge) bool { return ch.Type == way.Type })
		if i < 0 {
			continue
		}
		t.by = way.Type
		if t.w.Trying != nil {
			t.w.Trying(way.Type)
		}
		ch, err := t.ours(authz, authz.Challenges[i])
		if err != nil {
			t.leave(ctx, url)
			return fail("order", err)
		}
		err = t.validate(ctx, heard, authz, ch, way)
		if err == nil {
			return nil
		}
		return t.given(ctx, url, way.Type, err)
	}
	t.leave(ctx, url)
	return fail("order", &localError{fmt.Errorf("the CA offers %s, of which none can be used here", strings.Join(offers, ", "))})
}

// ours is a challenge as we answer it: for the name that we asked for, and with the key of our account here. What a CA says
// of either it could have from another CA, whose challenge for somebody else we would answer.
func (t *try) ours(authz acme.Authorization, ch acme.Challenge) (acme.Challenge, error) {
	id := identifier(strings.TrimPrefix(t.w.Name, "*."))
	if got := authz.Identifier; got.Type != id.Type || !sameName(got.Value, id.Value) {
		return ch, fmt.Errorf("the CA wants proof for %s, which is not what was asked for", shorten(got.Value))
	}
	if !isToken(ch.Token) {
		return ch, fmt.Errorf("the CA's token %s is none (RFC 8555 section 8.1)", shorten(ch.Token))
	}
	thumb, err := t.desk.account.Thumbprint()
	if err != nil {
		return ch, &localError{err}
	}
	ch.Identifier, ch.KeyAuthorization = id, ch.Token+"."+thumb
	return ch, nil
}

// identifier is a name as a CA is asked for it.
func identifier(name string) acme.Identifier {
	if plan.IsIP(name) {
		return acme.Identifier{Type: "ip", Value: name}
	}
	return acme.Identifier{Type: "dns", Value: name}
}

// sameName compares names, and addresses however they are written.
func sameName(x, y string) bool {
	a, err1 := netip.ParseAddr(x)
	b, err2 := netip.ParseAddr(y)
	if err1 == nil && err2 == nil {
		return a == b
	}
	return strings.EqualFold(x, y)
}

// isToken reports whether text is base64url, and short.
func isToken(text string) bool {
	return text != "" && len(text) <= maxToken && strings.IndexFunc(text, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

// given says whether another challenge may succeed where this one did not.
func (t *try) given(ctx context.Context, url, challenge string, err error) error {
	if !t.begun {
		t.leave(ctx, url)
	}
	var f *Failure
	if !errors.As(err, &f) { // ctx ended
		return err
	}
	f.Challenge = challenge
	p, _ := problemOf(f.Err)
	switch p.Type {
	case acme.ProblemTypeRateLimited, acme.ProblemTypeCAA, acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeAccountDoesNotExist,
		acme.ProblemTypeUserActionRequired:
		return f
	}
	if f.Kind == Limited {
		return f
	}
	return &nextError{challenge, f}
}

// leave tells the CA that it need not wait for us: it counts what is pending. What it is validating comes to its end by
// itself.
func (t *try) leave(ctx context.Context, url string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	_, _ = t.desk.client.DeactivateAuthorization(ctx, t.desk.account, url) // it lapses by itself, too
}

// validate presents, tells the CA to look, and waits for what it found.
func (t *try) validate(ctx context.Context, heard *ear, authz acme.Authorization, ch acme.Challenge, way Challenge) error {
	fail := func(err error) error { return t.c.failure(ctx, heard, t.w.Name, "validate", err) }
	t.begun = false
	end, err := way.Present(ctx, ch)
	if err != nil {
		if ctx.Err() != nil {
			return fail(err)
		}
		return fail(&localError{err})
	}
	defer end()
	t.begun = true
	if _, err := t.desk.client.InitiateChallenge(ctx, t.desk.account, ch); err != nil {
		return fail(err)
	}
	for pause := pollFirst; ; pause = min(pause*3/2, 3*time.Second) {
		_, wait := heard.last()
		timer := time.NewTimer(min(max(pause, wait), pollMost))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fail(fmt.Errorf("the CA did not come to a result: %w", ctx.Err()))
		}
		now, err := t.desk.client.GetAuthorization(ctx, t.desk.account, authz.Location)
		if err != nil {
			return fail(err)
		}
		switch now.Status {
		case acme.StatusPending:
		case acme.StatusValid:
			return nil
		default:
			return fail(verdict(now, ch.Type))
		}
	}
}

// verdict is why an authorization did not become valid.
func verdict(a acme.Authorization, challenge string) error {
	for _, ch := range a.Challenges {
		if ch.Type == challenge && ch.Error != nil {
			return *ch.Error
		}
	}
	return acme.Problem{Type: acme.ProblemTypeUnauthorized, Detail: "the authorization is " + a.Status + "; the CA does not say why"}
}

// finish has the certificate issued, and takes it.
func (t *try) finish(ctx context.Context, order acme.Order) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return &localError{err}
	}
	csr, err := acmez.NewCSR(key, []string{t.w.Name})
	if err != nil {
		return &localError{err}
	}
	if order, err = t.desk.client.FinalizeOrder(ctx, t.desk.account, order, csr.Raw); err != nil {
		return err
	}
	chains, err := t.chains(ctx, order.Certificate)
	if err != nil {
		return err
	}
	if len(chains) == 0 {
		return errors.New("the CA gave no certificate out")
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return &localError{err}
	}
	issued := &Issued{
		Chain: chains[0].ChainPEM, Key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), Challenge: t.by,
	}
	if issued.Certificate, err = Parse(issued.Chain, issued.Key); err != nil {
		return err
	}
	if err := Covers(issued.Certificate.Leaf, t.w.Name); err != nil {
		return err
	}
	if !issued.Certificate.Leaf.NotAfter.After(t.c.o.Now()) {
		return fmt.Errorf("the CA gave out a certificate that ended %v; see this machine's clock", issued.Certificate.Leaf.NotAfter)
	}
	t.issued = issued
	return nil
}

// chains are the certificate with what leads to its root. The library follows every link that it finds there.
func (t *try) chains(ctx context.Context, url string) ([]acme.Certificate, error) {
	ctx, end := within(ctx, chainBudget)
	defer end()
	chains, err := t.desk.client.GetCertificateChain(ctx, t.desk.account, url)
	if err != nil && errors.Is(context.Cause(ctx), errTooMuch) {
		err = errTooMuch // and not what the library makes of it, which names each link
	}
	return chains, err
}

// Parse makes a certificate of PEM, whose key is its own.
func Parse(chain, key []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// Covers wants a certificate to be for exactly that name, which may be a pattern.
func Covers(leaf *x509.Certificate, name string) error {
	if strings.HasPrefix(name, "*.") {
		if slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.EqualFold(n, name) }) {
			return nil
		}
		return fmt.Errorf("the certificate is for %s, not for %s", strings.Join(leaf.DNSNames, ", "), name)
	}
	return leaf.VerifyHostname(name)
}

// problemOf is what the CA said, if err is that.
func problemOf(err error) (acme.Problem, bool) {
	var p acme.Problem
	var to *acme.Problem
	switch {
	case errors.As(err, &p):
		return p, true
	case errors.As(err, &to) && to != nil:
		return *to, true
	}
	return p, false
}

func is(err error, problem string) bool {
	p, ok := problemOf(err)
	return ok && p.Type == problem
}
