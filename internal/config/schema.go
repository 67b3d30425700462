package config

// Schema is the JSON Schema of a configuration file.
func Schema() []byte { return nil }
