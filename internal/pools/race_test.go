//go:build race

package pools

const raced = true // sync.Pool then drops at random
