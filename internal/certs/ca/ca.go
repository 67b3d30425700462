// Package ca is a CA of our own, for names that no public one gives certificates for.
package ca
