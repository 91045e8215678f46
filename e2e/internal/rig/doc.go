// Package rig runs the built relay, as a process or in its image, against a
// database and a far end, and keeps the ledger of what became of each event.
package rig
