//go:build !race

package pools

const raced = false
