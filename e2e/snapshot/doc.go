// Package snapshot sends the rows of a large captured table, and the changes that go on
// meanwhile, with a real process that is killed. See `make snapshot`.
package snapshot
