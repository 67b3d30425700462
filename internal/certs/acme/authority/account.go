package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/mholt/acmez/v3/acme"
)

// kept is an account as it is stored. The key is there before the CA has heard of it, so that an account whose answer was
// lost is found again by its key.
type kept struct {
	Directory string   `json:"directory"`
	Contact   []string `json:"contact,omitempty"`
	KeyID     string   `json:"eab_kid,omitempty"`
	Location  string   `json:"location,omitempty"`
	Key       string   `json:"key"` // PEM
}

// file is the name of the account's file: directory, address and binding make an account.
func (c *CA) file() string {
	sum := sha256.Sum256([]byte(c.Issuer.Directory + "\x00" + c.Issuer.Email + "\x00" + c.Issuer.EABKeyID))
	return "acme-account-" + hex.EncodeToString(sum[:12]) + ".json"
}

// account is ours at the CA, made where there is none. The caller has the turn.
func (c *CA) account(ctx context.Context, d *desk) (acme.Account, error) {
	k, key, err := c.stored()
	if err != nil {
		return acme.Account{}, err
	}
	a := acme.Account{Contact: k.Contact, TermsOfServiceAgreed: true, PrivateKey: key, Location: k.Location, Status: acme.StatusValid}
	if k.Location != "" {
		return a, nil
	}
	if c.Issuer.EABKeyID == "" && d.directory.Meta != nil && d.directory.Meta.ExternalAccountRequired {
		return a, errNoEAB
	}
	if c.Issuer.EABKeyID != "" {
		if err := a.SetExternalAccountBinding(ctx, d.client, acme.EAB{KeyID: c.Issuer.EABKeyID, MACKey: string(c.Issuer.EABKey)}); err != nil {
			return a, fmt.Errorf("external account binding %s: %w", c.Issuer.EABKeyID, err)
		}
	}
	a, err = d.client.NewAccount(ctx, a)
	if err != nil {
		return a, err
	}
	if a.Status == "" {
		a.Status = acme.StatusValid // it was there already, and some do not say more
	}
	if a.Status != acme.StatusValid {
		_ = c.o.Store.Remove(c.file())
		return a, fmt.Errorf("the CA says that our account %s is %s; the next try makes another", a.Location, a.Status)
	}
	a.PrivateKey = key
	k.Location = a.Location
	if err := c.store(k); err != nil {
		c.o.Log.Error("the account at the CA is kept in memory only: after a restart it is asked for again", "issuer", c.Host(), "err", err)
	}
	c.o.Log.Info("account at the CA", "issuer", c.Host(), "account", shorten(a.Location))
	return a, nil
}

// stored is what the store has, or a new key that it has from now on.
func (c *CA) stored() (*kept, crypto.Signer, error) {
	raw, err := c.o.Store.Read(c.file())
	if err == nil {
		k := &kept{}
		key, err := readAccount(raw, k)
		if err == nil && k.Directory == c.Issuer.Directory {
			return k, key, nil
		}
		c.o.Log.Error("the stored account cannot be read: another is made", "issuer", c.Host(), "err", err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	k := &kept{
		Directory: c.Issuer.Directory, KeyID: c.Issuer.EABKeyID,
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
	}
	if c.Issuer.Email != "" {
		k.Contact = []string{"mailto:" + c.Issuer.Email}
	}
	if err := c.store(k); err != nil {
		c.o.Log.Error("the key of the account at the CA is kept in memory only", "issuer", c.Host(), "err", err)
	}
	return k, key, nil
}

func (c *CA) store(k *kept) error {
	raw, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return c.o.Store.Write(c.file(), raw)
}

func readAccount(raw []byte, k *kept) (crypto.Signer, error) {
	if err := json.Unmarshal(raw, k); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(k.Key))
	if block == nil {
		return nil, errors.New("its key is no PEM")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

// lost is called when the CA does not know the account any more: the next order makes another.
func (c *CA) lost(d *desk) {
	_ = c.o.Store.Remove(c.file())
	c.forget(d)
}
