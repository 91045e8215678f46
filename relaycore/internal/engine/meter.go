package engine

import "time"

type noMeter struct{}

func (noMeter) Received(int, int)                 {}
func (noMeter) Published(int, int, time.Duration) {}
func (noMeter) Latency(time.Time)                 {}
func (noMeter) Skipped(int)                       {}
func (noMeter) Unexpected(int)                    {}
func (noMeter) Conflicts(int)                     {}
func (noMeter) Filtered(int)                      {}
func (noMeter) DeadLettered(int)                  {}
func (noMeter) Parked(int)                        {}
func (noMeter) PublishFailed()                    {}
func (noMeter) SourceFailed()                     {}
func (noMeter) Committed(time.Duration)           {}
func (noMeter) InFlight(int64)                    {}
func (noMeter) Delivering(time.Time)              {}
