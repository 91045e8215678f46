// Package rig runs the built relay, as a process or in its image, against a
// database and a far end. It keeps a ledger of the fate of each event.
package rig
