package answer

import (
	"crypto/tls"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
)

func get(table *Table, path string) (int, string) {
	w := httptest.NewRecorder()
	table.ServeHTTP(w, httptest.NewRequest("GET", "http://a.example"+path, nil))
	return w.Code, w.Body.String()
}

func TestT04_OnlyWhatIsBeingValidatedIsAnswered(t *testing.T) {
	var table Table
	if table.IsToken([]byte(Path+"x")) || table.IsOrder("a.example") {
		t.Error("an empty table answers")
	}
	end := table.Token("x", "x.key")
	for path, want := range map[string]bool{
		Path + "x": true, Path + "y": false, Path: false, Path + "x/": false, Path + "X": false, "/x": false, "x": false, "": false,
	} {
		if got := table.IsToken([]byte(path)); got != want {
			t.Errorf("IsToken(%q) is %v", path, got)
		}
		if path == "" || path[0] != '/' {
			continue
		}
		if code, text := get(&table, path); (code == 200) != want || want && text != "x.key" {
			t.Errorf("%s: %d %q", path, code, text)
		}
	}
	end()
	end()
	if code, _ := get(&table, Path+"x"); code != 404 || table.IsToken([]byte(Path+"x")) || table.Len() != 0 {
		t.Errorf("a token is left behind: %d, %d entries", code, table.Len())
	}
}

func TestT13_OneOrderDoesNotDisturbAnother(t *testing.T) {
	var table Table
	first, second := new(tls.Certificate), new(tls.Certificate)
	endFirst := table.Order("a.example", first)
	endSecond := table.Order("a.example", second) // by another issuer
	endOther := table.Order("b.example", first)
	endFirst()
	c, err := table.Challenge(&tls.ClientHelloInfo{ServerName: "A.example."})
	if err != nil || c != second {
		t.Errorf("the end of the first order took the second's certificate: %v", err)
	}
	endSecond()
	if table.IsOrder("a.example") || !table.IsOrder("b.example") {
		t.Error("the wrong one ended")
	}
	endOther()
	if _, err := table.Challenge(&tls.ClientHelloInfo{ServerName: "b.example"}); err == nil {
		t.Error("an order that is over is answered")
	}
}

func TestT13_ManyAtOnceLeaveNothing(t *testing.T) {
	var table Table
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			token := strconv.Itoa(i)
			end := table.Token(token, "text")
			if !table.IsToken([]byte(Path + token)) {
				t.Error("a token that was put in is not there")
			}
			end()
			if table.IsToken([]byte(Path + token)) {
				t.Error("a token that ended is there")
			}
		})
	}
	all.Wait()
	if table.Len() != 0 {
		t.Errorf("%d are left", table.Len())
	}
}

func TestAskingCostsNoMemory(t *testing.T) {
	var table Table
	defer table.Token("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", "text")()
	defer table.Order("a.long.name.that.does.not.fit.into.a.small.buffer.example", new(tls.Certificate))()
	known, other := []byte(Path+"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"), []byte(Path+"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFH")
	if n := testing.AllocsPerRun(1000, func() {
		if !table.IsToken(known) || table.IsToken(other) || !table.IsOrder("a.long.name.that.does.not.fit.into.a.small.buffer.example") {
			t.Error("wrong answer")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
