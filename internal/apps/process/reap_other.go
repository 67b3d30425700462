//go:build !linux

package process

import "time"

const sweepEvery = 0

// sweeper is for process 1 of a container: there are none here.
func (r *Runner) sweeper() (<-chan time.Time, func()) { return nil, func() {} }

func (r *Runner) sweep() {}
