// Package memory measures the memory of a relay in a container of 256 MiB. Rows of many sizes
// go through one pipeline and through eight, into each backend. `make memory` prints a table.
package memory
