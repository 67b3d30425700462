package acme

import (
	"net/http"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/internal/certs/acme/acmetest"
)

func TestT13_ANameThatARouteSpellsOutKeepsWhatItHadOnDemand(t *testing.T) {
	stub := acmetest.NewStub(t, orders(&acmetest.Refusal{Status: 403, Type: "caa", Detail: "CAA forbids it"}))
	dir := t.TempDir()
	serial := put(t, dir, stub.Directory, "a.customer.example", 90*24*time.Hour)
	set, _ := onDemand(t, stub, 10, func(string) int { return http.StatusOK })
	set.OnDemand.Ask = ""
	r := run(t, nil, dir, Options{}, set, auto("?*.customer.example")...)
	if c, err := r.OnDemand(t.Context(), "a.customer.example"); err != nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Fatal(c, err)
	}
	if _, err := r.OnDemand(t.Context(), "b.customer.example"); err == nil {
		t.Fatal("a certificate came from nowhere")
	}
	r.until("the second is refused", func() bool { return r.one("b.customer.example").State == Failing })
	asked := stub.Count("order")
	r.follow(set, auto("?*.customer.example", "a.customer.example", "b.customer.example")...)
	c := r.Get("a.customer.example")
	if c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
		t.Error("the certificate does not serve any more")
	}
	if st := r.one("a.customer.example"); st.State != Valid || st.OnDemand || st.Issuer == "" {
		t.Errorf("%+v", st)
	}
	if st := r.one("b.customer.example"); st.State != Failing || st.OnDemand || st.Attempts != 1 {
		t.Errorf("%+v", st)
	}
	r.follow(set, auto("?*.customer.example", "a.customer.example", "b.customer.example", "c.customer.example")...)
	r.until("another is asked for", func() bool { return r.one("c.customer.example").State == Failing })
	if n := stub.Count("order"); n != asked+1 {
		t.Errorf("%d orders more than that of the new name", n-asked-1)
	}
}
