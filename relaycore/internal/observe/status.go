// Package observe holds what an operator sees of a running process: metrics,
// health and the status page.
package observe

import (
	"fmt"
	"time"
)

// States of a pipeline.
const (
	StateRunning  = "running"
	StateRetrying = "retrying" // it fails for now, and goes on by itself
	StateFailing  = "failing"  // it runs, and the far end refuses every message
	StateStarting = "starting"
	StateStopping = "stopping" // it drains
	StateFailed   = "failed"   // like retrying, but it needs an operator
	StateInvalid  = "invalid"  // its configuration is invalid
	StateUnserved = "unserved" // no live instance has its backend
	StateStandby  = "standby"  // another instance runs it
	StateDisabled = "disabled"
	StateWaiting  = "waiting" // this process owns it, and its lock is not free yet
)

// DeadLetterWarning describes the dead letters of a pipeline.
func DeadLetterWarning(direction, name string, dead, parked int64) string {
	return fmt.Sprintf("%s pipeline %q has %d dead letters and %d parked messages", direction, name, dead, parked)
}

// Health is the status of a process, as /health reports it.
type Health struct {
	Status         string           `json:"status"` // healthy, degraded or unhealthy
	PipelinesOwned int              `json:"pipelines_owned"`
	UptimeSeconds  int64            `json:"uptime_seconds"`
	Reasons        []string         `json:"reasons,omitempty"`  // why it is unhealthy
	Warnings       []string         `json:"warnings,omitempty"` // problems outside this process
	Binary         string           `json:"binary"`
	Version        string           `json:"version"`
	Instance       string           `json:"instance"`
	Group          string           `json:"group"`
	Draining       bool             `json:"draining"`
	CatalogAge     *float64         `json:"catalog_age_seconds"` // since the pipelines were last read; null before that
	Postgres       Connection       `json:"postgres"`
	Listener       Connection       `json:"listener"`
	Instances      []InstanceStatus `json:"instances"`
	Pipelines      []PipelineStatus `json:"pipelines"`
}

// Connection is the state of a connection, with the error that ended it.
type Connection struct {
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"`
}

// InstanceStatus is a live process of the group.
type InstanceStatus struct {
	ID       string    `json:"id"`
	Binary   string    `json:"binary"`
	Version  string    `json:"version"`
	Hostname string    `json:"hostname"`
	PID      int       `json:"pid"`
	Backends []string  `json:"backends"`
	Draining bool      `json:"draining"`
	Started  time.Time `json:"started_at"`
}

// PipelineStatus is one pipeline as this process sees it.
type PipelineStatus struct {
	Name      string    `json:"name"`
	Direction string    `json:"direction"`
	Backend   string    `json:"backend"`
	State     string    `json:"state"`
	Owner     string    `json:"owner,omitempty"` // the instance that should run it
	Error     string    `json:"error,omitempty"`
	Since     time.Time `json:"since"` // when this state began
	Epoch     int64     `json:"epoch,omitempty"`
	Guarantee string    `json:"guarantee,omitempty"`
	Numbers   *Numbers  `json:"numbers,omitempty"`
}
