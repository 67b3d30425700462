//go:build !linux

package systemd

import "time"

// monotonic is for systemd, which there is not here.
func monotonic() time.Duration { return 0 }
