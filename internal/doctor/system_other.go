//go:build !linux

package doctor

import "io/fs"

const linux = false

var features []feature

// inodeOf is not needed where there is no /proc/locks.
func inodeOf(fs.FileInfo) (string, bool) { return "", false }

// synchronised is not known here.
func synchronised() (yes, known bool) { return false, false }
