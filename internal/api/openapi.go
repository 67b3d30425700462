package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/invopop/jsonschema"
)

// The part of OpenAPI 3.1 that is needed to describe the table.
type document struct {
	OpenAPI    string                          `json:"openapi"`
	Info       map[string]string               `json:"info"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components components                      `json:"components"`
}

type components struct {
	Schemas map[string]json.RawMessage `json:"schemas"`
}

type operation struct {
	Summary    string              `json:"summary"`
	Access     string              `json:"x-access"`
	Parameters []parameter         `json:"parameters,omitempty"`
	Responses  map[string]response `json:"responses"`
}

type parameter struct {
	Name     string            `json:"name"`
	In       string            `json:"in"`
	Required bool              `json:"required,omitempty"`
	Schema   map[string]string `json:"schema"`
}

type response struct {
	Description string           `json:"description"`
	Content     map[string]media `json:"content,omitempty"`
}

type media struct {
	Schema json.RawMessage `json:"schema"`
}

func (a *API) openapi(w http.ResponseWriter, _ *request) error {
	doc := document{
		OpenAPI: "3.1.0", Info: map[string]string{"title": "Quaymaster", "version": "1"},
		Paths: map[string]map[string]operation{}, Components: components{Schemas: map[string]json.RawMessage{}},
	}
	for _, e := range endpoints() {
		op, err := doc.operation(&e)
		if err != nil {
			return err
		}
		if doc.Paths[e.path] == nil {
			doc.Paths[e.path] = map[string]operation{}
		}
		doc.Paths[e.path][strings.ToLower(e.method)] = op
	}
	return reply(w, http.StatusOK, &doc)
}

// operation describes one line of the table.
func (d *document) operation(e *endpoint) (operation, error) {
	op := operation{Summary: e.about, Access: [...]string{"open", "read", "write"}[e.access]}
	text := map[string]string{"type": "string"}
	if _, rest, ok := strings.Cut(e.path, "{"); ok {
		name, _, _ := strings.Cut(rest, "}")
		op.Parameters = append(op.Parameters, parameter{name, "path", true, text})
	}
	for _, name := range e.asks {
		op.Parameters = append(op.Parameters, parameter{name, "query", false, text})
	}
	if (e.method == http.MethodPut || e.method == http.MethodDelete) && !strings.HasPrefix(e.path, "/v1/leases/") {
		op.Parameters = append(op.Parameters, parameter{"If-Match", "header", true, text})
	}
	fault, err := d.schema(Problem{})
	if err != nil {
		return op, err
	}
	well := response{Description: "well"}
	if e.gives != nil {
		s, err := d.schema(e.gives)
		if err != nil {
			return op, err
		}
		kind := "application/json"
		if e.path == "/v1/events" {
			kind = sse
		}
		well.Content = map[string]media{kind: {Schema: s}}
	}
	op.Responses = map[string]response{
		"2XX":     well,
		"default": {Description: "a problem (RFC 9457)", Content: map[string]media{"application/problem+json": {Schema: fault}}},
	}
	return op, nil
}

// schema describes the type of v, moves the types it uses to the components, and returns the description.
func (d *document) schema(v any) (json.RawMessage, error) {
	r := jsonschema.Reflector{Anonymous: true, AllowAdditionalProperties: true}
	s := r.Reflect(v)
	s.Version = ""
	defs := s.Definitions
	s.Definitions = nil
	for name, def := range defs {
		text, err := located(def)
		if err != nil {
			return nil, err
		}
		d.Components.Schemas[name] = text
	}
	return located(s)
}

// located writes a schema with its references pointing into the components.
func located(s *jsonschema.Schema) (json.RawMessage, error) {
	text, err := json.Marshal(s)
	return bytes.ReplaceAll(text, []byte(`"#/$defs/`), []byte(`"#/components/schemas/`)), err
}
