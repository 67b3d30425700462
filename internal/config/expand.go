package config

import "github.com/quaymaster/quaymaster/internal/plan"

// Expand prints the whole plan as YAML, after defaults and merging, with secrets as ***.
func Expand(p *plan.Plan) []byte { return nil }
