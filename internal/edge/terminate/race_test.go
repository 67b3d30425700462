//go:build race

package terminate

const raceEnabled = true
