package relaycmd

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/daemon"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// runOptions are the options of the daemon.
type runOptions struct {
	instanceID        string
	discoveryInterval time.Duration
	drainTimeout      time.Duration
	autoMigrate       bool
	owner             string
	pprof             bool
	maxConnections    int
	maxInFlight       byteSize // 0: derived from the memory limit
}

func (p *program) runCommand() *ffcli.Command {
	var o runOptions
	fs := p.flagSet()
	fs.StringVar(&o.instanceID, "instance-id", "", "`name` of this process in its group; default: host name, process id and a random part")
	fs.DurationVar(&o.discoveryInterval, "discovery-interval", defaultDiscoveryInterval,
		"`time` between two reads of the catalog; notifications report changes at once")
	fs.DurationVar(&o.drainTimeout, "drain-timeout", 30*time.Second, "`time` that a shutdown may take before messages in flight are abandoned")
	fs.BoolVar(&o.autoMigrate, "auto-migrate", false, "install or upgrade the catalog at the start, as the migrate command does")
	fs.StringVar(&o.owner, "owner", "", ownerUsage)
	fs.BoolVar(&o.pprof, "pprof", false, "serve /debug/pprof on the metrics address")
	fs.IntVar(&o.maxConnections, "max-connections", 16,
		"maximum `number` of database connections, at least 4, besides the two for leases and notifications")
	fs.Var(&o.maxInFlight, "max-in-flight-bytes",
		"`size` such as 64MiB of all messages between source and sink; default: a quarter of the memory limit, at most 256MiB")

	return p.withArgs(0, 0, &ffcli.Command{
		Name: "run", ShortUsage: "[run] [flags]", ShortHelp: "run the pipelines; the default command", FlagSet: fs,
	}, func(ctx context.Context, _ []string) error {
		if err := o.validate(); err != nil {
			return err
		}
		return p.runDaemon(ctx, &o)
	})
}

const defaultDiscoveryInterval = 5 * time.Second

func (o *runOptions) validate() error {
	if o.discoveryInterval < 0 || o.drainTimeout < 0 {
		return errors.New("--discovery-interval and --drain-timeout must not be negative")
	}
	if o.discoveryInterval == 0 {
		o.discoveryInterval = defaultDiscoveryInterval
	}
	return nil
}

func (p *program) runDaemon(ctx context.Context, o *runOptions) error {
	metrics := p.common.metrics
	metrics.Pprof = o.pprof
	err := daemon.Run(ctx, daemon.Config{
		Name: p.name, Version: buildVersion(), Registry: p.registry, Access: p.common.access, Logger: p.logger(),
		PostgresURL: p.common.postgresURL, DataPostgresURL: p.common.dataURL, Group: p.common.group,
		Metrics:    metrics,
		InstanceID: o.instanceID, DiscoveryInterval: o.discoveryInterval, DrainTimeout: o.drainTimeout, AutoMigrate: o.autoMigrate,
		Owner: o.owner, MaxConnections: o.maxConnections, MaxInFlight: int64(o.maxInFlight),
	})
	if errors.Is(err, daemon.ErrIncomplete) {
		return errReported
	}
	return err
}

// byteSize is a flag such as 67108864 or 64MiB.
type byteSize int64

func (s *byteSize) Set(text string) error {
	if text == "" {
		return nil // as if unset
	}
	var size relaycfg.Size
	if err := size.UnmarshalJSON([]byte(strconv.Quote(text))); err != nil || size <= 0 {
		return errors.New("must be a size such as 67108864 or 64MiB")
	}
	*s = byteSize(size)
	return nil
}

func (s *byteSize) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}
