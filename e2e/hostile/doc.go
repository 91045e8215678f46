// Package hostile points every client of the relay at servers of other kinds, and at
// servers that send what none would send. The relay runs as a process of its own, in
// bounded memory. See `make hostile`.
package hostile
