// Package upgrade replaces relays of the last commit before events had identities by
// present ones, under load and with kill -9. See `make upgrade`.
package upgrade
