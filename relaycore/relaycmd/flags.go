package relaycmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// options are what flags, environment and file say.
type options struct {
	postgresURL string
	group       string
	logFormat   string
	logLevel    string
	configFile  string
	output      string

	metricsAddr    string
	instanceID     string
	discovery      time.Duration
	drain          time.Duration
	autoMigrate    bool
	pprof          bool
	maxConnections int
	maxInFlight    string

	// Of single commands.
	printSQL  bool
	count     int
	from, to  int64
	freshIDs  bool
	direction string
	ids       string
	key       string
	class     string
	before    string
	after     string
	all       bool
	url       string
	live      bool
}

func (o *options) json() bool { return o.output == "json" }

func (o *options) requireDatabase() error {
	if o.postgresURL == "" {
		return errors.New("--postgres-url is required (or set PGTRICKLE_RELAY_POSTGRES_URL)")
	}
	return nil
}

// common are the flags of every command, because every command takes the
// database and its output's shape in the same way.
func (o *options) common(fs *flag.FlagSet) {
	fs.StringVar(&o.postgresURL, "postgres-url", o.postgresURL, "`URL` of the database; ${env:NAME} and ${file:/path} are replaced")
	fs.StringVar(&o.group, "relay-group-id", cmp.Or(o.group, "default"), "`name` of the group of processes that share pipelines and checkpoints")
	fs.StringVar(&o.logFormat, "log-format", cmp.Or(o.logFormat, "text"), "`text|json`; logs go to standard error")
	fs.StringVar(&o.logLevel, "log-level", cmp.Or(o.logLevel, "info"), "`debug|info|warn|error`")
	fs.StringVar(&o.configFile, "config", o.configFile, "`file` with settings, one \"key = value\" a line, keys as the flags are called")
	fs.StringVar(&o.output, "output", cmp.Or(o.output, "text"), "`text|json`; what commands print")
	fs.StringVar(&o.metricsAddr, "metrics-addr", cmp.Or(o.metricsAddr, "0.0.0.0:9090"), "`host:port` of /health, /livez, /readyz, /metrics and the status page")
}

// daemon are the flags of run.
func (o *options) daemon(fs *flag.FlagSet) {
	fs.StringVar(&o.instanceID, "instance-id", "", "`name` of this process among those of its group; default: host name, process id and a random part")
	fs.DurationVar(&o.discovery, "discovery-interval", 5*time.Second, "`time` between two looks at the catalog; notifications make changes known at once")
	fs.DurationVar(&o.drain, "drain-timeout", 30*time.Second, "`time` that a shutdown may take before what is in flight is abandoned")
	fs.BoolVar(&o.autoMigrate, "auto-migrate", false, "install or upgrade the catalog at the start, as the migrate command does")
	fs.BoolVar(&o.pprof, "pprof", false, "serve /debug/pprof on the metrics address")
	fs.IntVar(&o.maxConnections, "max-connections", 16, "`number` of database connections at most, 4 at least, besides the two for leases and notifications")
	fs.StringVar(&o.maxInFlight, "max-in-flight-bytes", "", "`size` such as 64MiB of what all pipelines together may hold between source and sink; default: a quarter of the memory limit, at most 256MiB")
}

// envName is the environment variable of a flag.
func envName(flagName string) string {
	if flagName == "relay-group-id" {
		return envPrefix + "GROUP_ID"
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

const envPrefix = "PGTRICKLE_RELAY_"

// byKubernetes matches what Kubernetes sets in every pod when there is a service
// called pgtrickle-relay, or pgtrickle-relay-metrics.
var byKubernetes = regexp.MustCompile(`^PGTRICKLE_RELAY_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)$`) //nolint:gochecknoglobals // constant

// parse finds the command, and fills the options from flags, environment and
// file, the first of which wins.
func (p *program) parse() (command, []string, error) {
	cmd, flags, positional, err := p.split()
	if err != nil {
		return command{}, nil, err
	}
	fs := p.flagSet(cmd)
	if err := p.applyEnvironment(fs); err != nil {
		return command{}, nil, err
	}
	err = ff.Parse(fs, flags, ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(p.fileParser(fs)))
	switch {
	case errors.Is(err, flag.ErrHelp):
		p.help(p.stdout, cmd)
		return command{}, nil, flag.ErrHelp
	case err != nil:
		return command{}, nil, p.flagError(cmd, err)
	}
	return cmd, positional, p.opts.validate()
}

func (p *program) flagSet(cmd command) *flag.FlagSet {
	fs := flag.NewFlagSet(p.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	p.opts.common(fs)
	if cmd.name == "run" {
		p.opts.daemon(fs)
	}
	if cmd.flags != nil {
		cmd.flags(fs, &p.opts)
	}
	return fs
}

// split sorts the arguments into the command, its flags and the rest. Flags may
// stand anywhere.
func (p *program) split() (cmd command, flags, positional []string, err error) {
	takesValue := make(map[string]bool)
	for _, c := range commands() {
		var scratch options
		fs := (&program{name: p.name, opts: scratch}).flagSet(c)
		fs.VisitAll(func(f *flag.Flag) {
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			takesValue[f.Name] = !ok || !b.IsBoolFlag()
		})
	}
	var words []string
	for i := 0; i < len(p.args); i++ {
		arg := p.args[i]
		switch {
		case arg == "--":
			words = append(words, p.args[i+1:]...)
			i = len(p.args)
		case len(arg) > 1 && arg[0] == '-':
			if arg == "-V" || arg == "--version" || arg == "-version" {
				return find("version"), nil, nil, nil
			}
			flags = append(flags, arg)
			name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			if _, known := takesValue[name]; !known && name != "h" && name != "help" {
				return command{}, nil, nil, unknownFlag(p.name, name, slices.Sorted(maps.Keys(takesValue)))
			}
			if takesValue[name] && !hasValue && i+1 < len(p.args) {
				i++
				flags = append(flags, p.args[i])
			}
		default:
			words = append(words, arg)
		}
	}
	if len(words) == 0 {
		return find("run"), flags, nil, nil
	}
	for _, c := range commands() {
		parts := strings.Fields(c.name)
		if len(words) >= len(parts) && slices.Equal(words[:len(parts)], parts) {
			return c, flags, words[len(parts):], nil
		}
	}
	if words[0] == "help" {
		return find("run"), []string{"-h"}, nil, nil
	}
	return command{}, nil, nil, unknownCommand(words)
}

func unknownCommand(words []string) error {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
		if first, _, sub := strings.Cut(c.name, " "); sub && first == words[0] {
			return fmt.Errorf("usage: %s list|retry|discard ...; see -h", first)
		}
	}
	if near := relaycfg.Nearest(words[0], names); near != "" {
		return fmt.Errorf("unknown command %q; did you mean %q?", words[0], near)
	}
	return fmt.Errorf("unknown command %q; there are %s", words[0], strings.Join(names, ", "))
}

// applyEnvironment sets flags from variables. A variable with our prefix that is
// no flag of any command is an error: it is a typing mistake, or a setting that
// would silently not apply.
func (p *program) applyEnvironment(fs *flag.FlagSet) error {
	known := make(map[string]bool)
	for _, c := range commands() {
		(&program{name: p.name}).flagSet(c).VisitAll(func(f *flag.Flag) { known[envName(f.Name)] = true })
	}
	vars := make(map[string]string)
	for _, kv := range p.environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || byKubernetes.MatchString(name) {
			continue
		}
		if !known[name] {
			return unknownVariable(name, slices.Sorted(maps.Keys(known)))
		}
		vars[name] = value
	}
	var err error
	fs.VisitAll(func(f *flag.Flag) {
		if value := vars[envName(f.Name)]; value != "" && err == nil {
			if serr := fs.Set(f.Name, value); serr != nil {
				err = fmt.Errorf("%s=%q: %w", envName(f.Name), value, serr)
			}
		}
	})
	return err
}

func unknownVariable(name string, known []string) error {
	if near := relaycfg.Nearest(name, known); near != "" {
		return fmt.Errorf("unknown environment variable %s; did you mean %s?", name, near)
	}
	return fmt.Errorf("unknown environment variable %s; valid are %s", name, strings.Join(known, ", "))
}

// fileParser reads a JSON object, or lines of "key = value", "key: value" or
// "key value". Keys are flags' names, with "-" or "_". A key of another command
// is passed over, so that one file can serve all.
func (p *program) fileParser(fs *flag.FlagSet) ff.ConfigFileParser {
	return func(r io.Reader, set func(name, value string) error) error {
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		settings, err := parseFile(string(text))
		if err != nil {
			return err
		}
		all := p.allFlags()
		for _, s := range settings {
			name := strings.ReplaceAll(s.key, "_", "-")
			switch {
			case name == "config" || !slices.Contains(all, name):
				if near := relaycfg.Nearest(name, all); near != "" {
					return fmt.Errorf("unknown key %q; did you mean %q?", s.key, near)
				}
				return fmt.Errorf("unknown key %q; valid keys are %s", s.key, strings.Join(all, ", "))
			case fs.Lookup(name) == nil:
			default:
				if err := set(name, s.value); err != nil {
					return fmt.Errorf("key %q: %w", s.key, err)
				}
			}
		}
		return nil
	}
}

func (p *program) allFlags() []string {
	names := make(map[string]bool)
	for _, c := range commands() {
		(&program{name: p.name}).flagSet(c).VisitAll(func(f *flag.Flag) { names[f.Name] = true })
	}
	return slices.Sorted(maps.Keys(names))
}

type setting struct{ key, value string }

func parseFile(text string) ([]setting, error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		return parseJSONFile(text)
	}
	var settings []setting
	scanner := bufio.NewScanner(strings.NewReader(text))
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			return nil, fmt.Errorf("line %d: sections are not understood; the file is a list of keys and values", n)
		}
		end := strings.IndexAny(line, "=: \t")
		if end < 0 {
			settings = append(settings, setting{line, "true"})
			continue
		}
		value := strings.TrimSpace(line[end:])
		value = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(value, "="), ":"))
		switch {
		case strings.HasPrefix(value, `"`), strings.HasPrefix(value, `'`):
			quote := value[:1]
			closing := strings.LastIndex(value, quote)
			if closing == 0 {
				return nil, fmt.Errorf("line %d: no closing quote", n)
			}
			value = value[1:closing]
		default:
			value, _, _ = strings.Cut(value, " #")
			value = strings.TrimSpace(value)
		}
		settings = append(settings, setting{line[:end], value})
	}
	return settings, scanner.Err()
}

func parseJSONFile(text string) ([]setting, error) {
	var values map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&values); err != nil {
		return nil, err
	}
	var settings []setting
	for _, key := range slices.Sorted(maps.Keys(values)) {
		switch v := values[key].(type) {
		case string, json.Number, bool:
			settings = append(settings, setting{key, fmt.Sprint(v)})
		default:
			return nil, fmt.Errorf("key %q: wants a string, a number or a boolean", key)
		}
	}
	return settings, nil
}

// flagError says what package flag and the file's parser say, shorter.
func (p *program) flagError(cmd command, err error) error {
	msg := strings.TrimPrefix(err.Error(), "error parsing commandline arguments: ")
	if _, name, undefined := strings.Cut(msg, "flag provided but not defined: -"); undefined {
		return fmt.Errorf("%s: --%s is a flag of another command; see %s %s -h", cmd.name, name, p.name, cmd.name)
	}
	if p.opts.configFile != "" && strings.Contains(msg, "config file") {
		return fmt.Errorf("%s: %s", p.opts.configFile, strings.TrimPrefix(msg, "error parsing config file: "))
	}
	return errors.New(msg)
}

func unknownFlag(program, name string, known []string) error {
	if near := relaycfg.Nearest(name, known); near != "" {
		return fmt.Errorf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return fmt.Errorf("unknown flag --%s; see %s -h", name, program)
}

func (o *options) validate() error {
	for _, c := range []struct {
		flag, value string
		valid       []string
	}{
		{"log-format", o.logFormat, []string{"text", "json"}},
		{"log-level", o.logLevel, []string{"debug", "info", "warn", "error"}},
		{"output", o.output, []string{"text", "json"}},
	} {
		if !slices.Contains(c.valid, c.value) {
			return fmt.Errorf("--%s is %q; must be one of %s", c.flag, c.value, strings.Join(c.valid, ", "))
		}
	}
	switch {
	case o.group == "":
		return errors.New("--relay-group-id must not be empty")
	case o.discovery < 0 || o.drain < 0:
		return errors.New("--discovery-interval and --drain-timeout must not be negative")
	}
	if o.discovery == 0 {
		o.discovery = 5 * time.Second
	}
	url, err := relaycfg.ExpandString(o.postgresURL)
	if err != nil {
		return fmt.Errorf("--postgres-url: %w", err)
	}
	o.postgresURL = url
	return nil
}

func (o *options) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(o.logLevel)) // validated
	opts := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// command is one thing that a binary can do.
type command struct {
	name     string
	usage    string
	short    string
	minArgs  int
	maxArgs  int
	database bool
	flags    func(*flag.FlagSet, *options)
	run      func(ctx context.Context, p *program, args []string) error
}

func commands() []command {
	return []command{
		{name: "run", usage: "[run] [flags]", short: "run the pipelines; what happens without a command", database: true, run: runDaemon},
		{name: "migrate", usage: "migrate [--sql]", short: "install or upgrade the catalog", flags: func(fs *flag.FlagSet, o *options) {
			fs.BoolVar(&o.printSQL, "sql", false, "print the SQL and change nothing")
		}, run: runMigrate},
		{name: "check", usage: "check [NAME]", short: "check pipelines: configuration, connections, permissions, guarantees", maxArgs: 1, database: true, run: runCheck},
		{name: "status", usage: "status", short: "show pipelines, their owners and progress, from the database", database: true, run: runStatus},
		{name: "preview", usage: "preview NAME [-n N] [--from ID]", short: "show the next messages of a forward pipeline as they would be sent", minArgs: 1, maxArgs: 1, database: true, flags: func(fs *flag.FlagSet, o *options) {
			fs.IntVar(&o.count, "n", 5, "`number` of messages")
			fs.Int64Var(&o.from, "from", 0, "outbox `id` to begin with; default: what is not delivered yet")
		}, run: runPreview},
		{name: "dlq list", usage: "dlq list [NAME] [filters]", short: "show dead letters and what is parked behind them", maxArgs: 1, database: true, flags: letterFilters, run: runLetters},
		{name: "dlq retry", usage: "dlq retry NAME [filters]", short: "deliver dead letters again, and what is parked behind them", minArgs: 1, maxArgs: 1, database: true, flags: letterFilters, run: runLetters},
		{name: "dlq discard", usage: "dlq discard NAME filters|--all", short: "drop dead letters, so that what is parked behind them is delivered", minArgs: 1, maxArgs: 1, database: true, flags: func(fs *flag.FlagSet, o *options) {
			letterFilters(fs, o)
			fs.BoolVar(&o.all, "all", false, "discard all of the pipeline's dead letters")
		}, run: runLetters},
		{name: "replay", usage: "replay NAME --from ID --to ID", short: "publish delivered outbox rows again, without moving the checkpoint", minArgs: 1, maxArgs: 1, database: true, flags: func(fs *flag.FlagSet, o *options) {
			fs.Int64Var(&o.from, "from", 0, "first outbox `id`")
			fs.Int64Var(&o.to, "to", 0, "last outbox `id`")
			fs.BoolVar(&o.freshIDs, "new-ids", false, "give the messages new ids, for far ends that would drop the old ones as duplicates")
		}, run: runReplay},
		{name: "verify", usage: "verify NAME", short: "account for every row of a forward pipeline's outbox", minArgs: 1, maxArgs: 1, database: true, run: runVerify},
		{name: "keys", usage: "keys [BACKEND]", short: "show every key of a pipeline's configuration", maxArgs: 1, run: runKeys},
		{name: "version", usage: "version", short: "show version and backends", run: runVersion},
		{name: "healthcheck", usage: "healthcheck [--live] [--url URL]", short: "ask a running relay for its health; for container health checks", flags: func(fs *flag.FlagSet, o *options) {
			fs.StringVar(&o.url, "url", "", "`URL` to ask; default: /health, or /livez with --live, at --metrics-addr on this machine")
			fs.BoolVar(&o.live, "live", false, "ask /livez instead, which says only that the process runs")
		}, run: runHealthcheck},
	}
}

func letterFilters(fs *flag.FlagSet, o *options) {
	fs.StringVar(&o.ids, "id", "", "`ids` of dead letters, separated by commas")
	fs.StringVar(&o.direction, "direction", "", "`forward|reverse`, where both bear the name")
	fs.StringVar(&o.key, "key", "", "ordering `key`")
	fs.StringVar(&o.class, "class", "", "`class` of error, as dlq list shows it")
	fs.StringVar(&o.after, "after", "", "`time` from which on they were stored, such as 2026-01-31T10:00:00Z")
	fs.StringVar(&o.before, "before", "", "`time` before which they were stored")
}

func find(name string) command {
	all := commands()
	return all[slices.IndexFunc(all, func(c command) bool { return c.name == name })]
}

// help prints what -h shows.
func (p *program) help(w io.Writer, cmd command) {
	if cmd.name == "run" {
		fmt.Fprintf(w, "%s moves events between PostgreSQL and messaging systems.\n\n", p.name)
		fmt.Fprintf(w, "Usage:\n  %s [command] [flags]\n\nCommands:\n", p.name)
		for _, c := range commands() {
			fmt.Fprintf(w, "  %-14s %s\n", c.name, c.short)
		}
		fmt.Fprintf(w, "\nBackends: %s\n", strings.Join(p.registry.Names(), ", "))
	} else {
		fmt.Fprintf(w, "%s: %s\n\nUsage:\n  %s %s\n", cmd.name, cmd.short, p.name, cmd.usage)
	}
	fmt.Fprint(w, "\nFlags, each with its environment variable; flags go before the environment, and that before the file:\n")
	clean := &program{name: p.name}
	clean.flagSet(cmd).VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		def := ""
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			def = " (default " + f.DefValue + ")"
		}
		dashes := "--"
		if len(f.Name) == 1 {
			dashes = "-"
		}
		fmt.Fprintf(w, "  %s\n      %s%s\n      %s\n", strings.TrimSpace(dashes+f.Name+" "+arg), text, def, envName(f.Name))
	})
}
