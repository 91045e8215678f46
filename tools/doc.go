// Package tools holds the programs that keep this repository's habits. They use
// the standard library only, and `make lint` runs them.
package tools
