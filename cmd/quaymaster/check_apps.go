package main

import (
	"fmt"
	"strings"

	"github.com/quaymaster/quaymaster/internal/apps/process"
	"github.com/quaymaster/quaymaster/internal/config"
	"github.com/quaymaster/quaymaster/internal/plan"
)

// preflight looks for what would keep the apps of a plan from being started on this machine. What depends on who runs
// quaymaster is noted alone, since that may be another one than who checks; and so is what a fixed port forbids.
func (v *verdict) preflight(p *plan.Plan) config.Errors {
	var bad config.Errors
	for _, a := range p.Apps {
		at := p.Where["app/"+a.Name]
		say := func(key, text string) config.Error {
			message, remedy, _ := strings.Cut(text, "; ")
			return config.Error{File: at.File, Line: at.Line, Col: at.Col, Path: "apps." + a.Name + key, Message: message, Remedy: remedy}
		}
		if a.Image == "" { // an engine may be another one when it is started
			faults, ours := process.Preflight(a)
			for _, err := range faults {
				bad = append(bad, say("", "it cannot be started: "+err.Error()))
			}
			for _, err := range ours {
				v.Notes = append(v.Notes, say("", "it could not be started by who checks this: "+err.Error()))
			}
		}
		if a.Port != 0 && a.Socket == "tcp" {
			v.Notes = append(v.Notes, say(".port", fmt.Sprintf(
				"%d is fixed, so a changed entry ends the app before the new one starts, and requests wait meanwhile; port: auto brings the new one up beside the old one", a.Port)))
		}
	}
	return bad.Sort()
}
