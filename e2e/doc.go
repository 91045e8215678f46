// Package e2e has the tests that drive the built binaries and images against
// real servers in containers. RELAY_E2E=1 runs them; make e2e does all of it.
package e2e
