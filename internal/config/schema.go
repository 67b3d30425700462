package config

import "github.com/quaymaster/quaymaster/internal/config/form"

// Schema is the JSON Schema of a configuration file, made from the types that files are read into.
func Schema() []byte { return form.Schema() }
