package strict

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type sample struct {
	Word   string            `yaml:"word" oneof:"one,two"`
	Number int               `yaml:"number" range:"1..5"`
	Switch bool              `yaml:"switch"`
	List   []string          `yaml:"list"`
	Map    map[string]string `yaml:"map"`
	Inner  *inner            `yaml:"inner"`
	Secret Secret            `yaml:"secret"`
	Any    any               `yaml:"any"`
}

type inner struct {
	Deep string `yaml:"deep"`
	Size even   `yaml:"size"`
}

func (i *inner) Defaults() { i.Deep = "default" }

type even int

func (e *even) ReadText(s string) error {
	if _, err := fmt.Sscan(s, (*int)(e)); err != nil {
		return errors.New("no number")
	}
	if *e%2 != 0 {
		return Faultf("write an even number", "%d is odd", *e)
	}
	return nil
}

func read(t *testing.T, text string, o Options) (sample, Problems) {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	r := NewReader(o)
	var s sample
	r.Read(doc.Content[0], &s)
	return s, r.Problems
}

func TestReadTakesTextsAsWhatTheTypeWants(t *testing.T) {
	s, problems := read(t, "{word: two, number: \"5\", switch: \"true\", list: [1, 2.0, null word], map: {1: 2}, inner: {size: 4}, any: [x]}", Options{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.Number != 5 || !s.Switch || s.List[1] != "2.0" || s.Map["1"] != "2" || s.Inner.Deep != "default" || s.Inner.Size != 4 || s.Any == nil {
		t.Errorf("%+v", s)
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"number: 6":         "1:9: number: 6 is out of range; write a number from 1 to 5",
		"number: 1e3":       `"1e3" is not a whole number`,
		"word: tow":         `"tow" is not known here; write two`,
		"word: later":       "later is not in this version; write one or two",
		"then: 1":           "then is not in this version",
		"nubmer: 1":         `there is no key "nubmer" here; write number`,
		"deep: 1":           "write it under inner",
		"inner: {size: 3}":  "1:15: inner.size: 3 is odd; write an even number",
		"inner: {size: x}":  "inner.size: no number",
		"map: {a: 1, a: 2}": "1:13: map.a: also set at line 1; keep one of the two",
		"list: x":           "write [ ] around it",
		"switch: on":        "write true or false",
		"number: ~":         "there is no value",
		"secret: file:/x":   "file: is read in files only",
		"word: ${one}":      `"${one}" is not known here`, // nothing is expanded without an environment
		"? [a]\n: b":        "a list cannot be a key",
		"inner: {<<: [1]}":  "only maps can be merged",
		"number: !!str 1":   "the YAML tag !!str is not understood",
	} {
		_, problems := read(t, text, Options{Later: func(owner, key string) bool {
			return owner == "sample" && (key == "word=later" || key == "then")
		}})
		if len(problems) != 1 || !strings.Contains(problems.Error(), want) {
			t.Errorf("%s: %v, want %s", text, problems, want)
		}
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	o := Options{Secret: func(path string) (string, error) {
		if path == "/missing" {
			return "", errors.New("no such file")
		}
		return "of " + path + "\r\n", nil
	}}
	if s, problems := read(t, "{secret: file:/x, word: one}", o); s.Secret != "of /x" || len(problems) > 0 {
		t.Errorf("%q %v", s.Secret, problems)
	}
	if s, problems := read(t, "secret: plain", o); s.Secret != "plain" || len(problems) > 0 {
		t.Errorf("%q %v", s.Secret, problems)
	}
	if _, problems := read(t, "secret: file:/missing", o); len(problems) != 1 {
		t.Errorf("%v", problems)
	}
	if s, _ := read(t, "list: [file:/x]", o); s.List[0] != "file:/x" {
		t.Errorf("file: was read in a key that is no secret: %q", s.List[0])
	}
}

func TestVariablesAreExpandedOnce(t *testing.T) {
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "${B}", "B": "b", "E": ""}[name]
		return v, ok
	}
	for text, want := range map[string]string{
		"${B}": "b", "x${B}y${B}": "xbyb", "${A}": "${B}", "$${B}": "${B}", "$B $ $$ {B}": "$B $ $$ {B}", "${E}": "", "${E:-x}": "x",
		"${U:-}": "", "${U:-a:-b}": "a:-b", "$$${B}": "$${B}",
	} {
		s, problems := read(t, "list: ['"+text+"']", Options{Env: env})
		if len(problems) > 0 || s.List[0] != want {
			t.Errorf("%s: %q %v, want %q", text, s.List[0], problems, want)
		}
	}
	if s, _ := read(t, "map: {'k${B}': v}", Options{Env: env}); s.Map["kb"] != "v" {
		t.Errorf("map %v", s.Map)
	}
	_, problems := read(t, "list: ['${U} ${V}', '${1A}', '${B']", Options{Env: env})
	if len(problems) != 4 {
		t.Errorf("%v", problems)
	}
}

// TestTwoFilesMayNotSetOneValue reads two texts into one value.
func TestTwoFilesMayNotSetOneValue(t *testing.T) {
	places := map[string]Place{}
	var s sample
	for i, text := range []string{"{number: 1, list: [a], map: {x: y}}", "{number: 2, list: [b], map: {z: y}, switch: true}"} {
		var doc yaml.Node
		_ = yaml.Unmarshal([]byte(text), &doc)
		r := NewReader(Options{Places: places, File: fmt.Sprintf("%d.yaml", i)})
		r.Read(doc.Content[0], &s)
		if i == 1 && (len(r.Problems) != 1 || r.Problems[0].Message != "also set at 0.yaml:1:10") {
			t.Errorf("problems %v", r.Problems)
		}
	}
	if s.Number != 1 || !reflect.DeepEqual(s.List, []string{"a", "b"}) || len(s.Map) != 2 || !s.Switch {
		t.Errorf("%+v", s)
	}
}

func TestNearestFindsWhatWasMeant(t *testing.T) {
	words := []string{"timeouts", "targets", "ports", "tls"}
	for s, want := range map[string]string{
		"timeout": "timeouts", "Targets": "targets", "tragets": "targets", "port": "ports", "tsl": "tls", "x": "", "completely": "", "timeoutsss": "timeouts",
		strings.Repeat("t", 500): "",
	} {
		if got := Nearest(s, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", s, got, want)
		}
	}
}

// TestCutTellsWherePiecesStand checks texts, lines and indexes of the pieces.
func TestCutTellsWherePiecesStand(t *testing.T) {
	text := "# head\na: 1\nroutes: # all\n  # first\n  - x\n\n  - y: |\n      - z\n\nb: 2\nempty:\n"
	pieces, ok := Cut([]byte(text), Sections{"routes": yaml.SequenceNode, "empty": yaml.MappingNode}, func() {})
	if !ok {
		t.Fatal("not cut")
	}
	var got []string
	for _, p := range pieces {
		if !p.Parse() {
			t.Errorf("%q does not parse", p.Text)
		}
		got = append(got, fmt.Sprintf("%s %v %d@%d %q", p.Section, p.Item, p.Index, p.Line, p.Text))
	}
	want := []string{
		`a false 0@1 "a: 1\n"`, `routes true 0@4 "  - x\n\n"`, `routes true 1@6 "  - y: |\n      - z\n\n"`, `b false 0@9 "b: 2\n"`, `empty false 0@10 "empty:\n"`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestPiecesParsedTogetherAreThoseParsedAlone compares nodes, lines included.
func TestPiecesParsedTogetherAreThoseParsedAlone(t *testing.T) {
	text := []byte("routes:\n- a\n- b: {c: d,\n    e: f}\n-\n  g: h\n- |\n  i\n")
	together, _ := Cut(text, Sections{"routes": yaml.SequenceNode}, func() {})
	alone, _ := Cut(text, Sections{"routes": yaml.SequenceNode}, func() {})
	if !ParseAll(together, func() {}) {
		t.Fatal("refused")
	}
	for i := range alone {
		if !alone[i].Parse() || !reflect.DeepEqual(alone[i], together[i]) {
			t.Errorf("%d: %+v\n%+v", i, alone[i].Value, together[i].Value)
		}
	}
	bad, ok := Cut([]byte("routes:\n- \"a\n- b\"\n- c\n"), Sections{"routes": yaml.SequenceNode}, func() {})
	if !ok || ParseAll(bad, func() {}) {
		t.Error("two items stand in three pieces, and were taken")
	}
	text = []byte("- \"a\n- b\"\n- c\n- d\n")
	shifted := []Piece{{Item: true, Text: text[:5]}, {Item: true, Text: text[5:10], Line: 1}, {Item: true, Text: text[10:], Line: 2}}
	if ParseAll(shifted, func() {}) {
		t.Error("three items stand in other pieces than theirs, and were taken")
	}
	text = []byte("- a\n- \"b\nc\"\n")
	if ParseAll([]Piece{{Item: true, Text: text[:9]}, {Item: true, Text: text[9:], Line: 2}}, func() {}) {
		t.Error("an item begins in the piece before its own, and was taken")
	}
}

func TestProblemsAreSortedAndSaidOnce(t *testing.T) {
	ps := Problems{{File: "b", Line: 1}, {File: "a", Line: 2, Col: 1, Message: "m"}, {File: "a", Line: 1, Col: 5}, {File: "a", Line: 2, Col: 1, Message: "m"}}.Sort()
	if len(ps) != 3 || ps[0].Line != 1 || ps[2].File != "b" {
		t.Errorf("%v", ps)
	}
	if got := (Problem{File: "f", Line: 3, Col: 4, Path: "p", Message: "m", Remedy: "r"}).Error(); got != "f:3:4: p: m; r" {
		t.Error(got)
	}
}
