package config

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestEveryBlockOfTheReferenceLoads keeps docs/config.md true.
func TestEveryBlockOfTheReferenceLoads(t *testing.T) {
	doc := "../../docs/config.md"
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) < 5 {
		t.Fatalf("%d blocks found", len(blocks))
	}
	for _, b := range blocks {
		if _, _, err := NewLoader().Load([]Source{{Name: doc, Bytes: b[1]}}, nil); err != nil {
			t.Errorf("%v\n%s", err, b[1])
		}
	}
}

// TestEveryExampleLoads loads the folder of examples, without a warning.
func TestEveryExampleLoads(t *testing.T) {
	files, _ := filepath.Glob("../../examples/*.yaml")
	if len(files) < 6 {
		t.Fatalf("%d examples found", len(files))
	}
	for _, name := range files {
		sources, err := ReadFiles([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		_, warnings, err := NewLoader().Load(sources, nil)
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", name, err, warnings)
		}
	}
}
