// Package takeover measures, with real processes, how pipelines are shared and how
// long a pipeline stands still when its owner is killed. See `make takeover`.
package takeover
