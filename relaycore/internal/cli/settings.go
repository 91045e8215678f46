package cli

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/peterbourgon/ff/v3"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

const envPrefix = "PGTRICKLE_RELAY_"

// kubernetesVariable matches the variables that Kubernetes sets in every pod if
// there is a service called pgtrickle-relay, or pgtrickle-relay-metrics.
var kubernetesVariable = regexp.MustCompile(
	`^PGTRICKLE_RELAY_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)$`)

// variable returns the environment variable of a flag.
func variable(flagName string) string {
	if flagName == "relay-group-id" {
		return envPrefix + "GROUP_ID"
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// setFromEnvironment sets flags of fs from variables. A variable with our prefix that
// belongs to no flag of any command is an error: it would silently not apply.
func (p *parser) setFromEnvironment(fs *flag.FlagSet) error {
	var known []string
	for name := range p.flags {
		known = append(known, variable(name))
	}
	slices.Sort(known)

	values := make(map[string]string)
	for _, v := range p.Environ {
		name, value, _ := strings.Cut(v, "=")
		switch {
		case !strings.HasPrefix(name, envPrefix), kubernetesVariable.MatchString(name):
		case !slices.Contains(known, name):
			return unknown("environment variable", name, known)
		default:
			values[name] = value
		}
	}

	var err error
	fs.VisitAll(func(f *flag.Flag) {
		name := variable(f.Name)
		if value := values[name]; value != "" && err == nil {
			if setErr := fs.Set(f.Name, value); setErr != nil {
				err = fmt.Errorf("%s=%q: %w", name, value, setErr)
			}
		}
	})
	return err
}

func unknown(what, name string, known []string) error {
	if near := relaycfg.Nearest(name, known); near != "" {
		return fmt.Errorf("unknown %s %s; did you mean %s?", what, name, near)
	}
	return fmt.Errorf("unknown %s %s; valid are %s", what, name, strings.Join(known, ", "))
}

// fileParser reads a JSON object, or lines of "key = value", "key: value" or
// "key value". Keys are names of flags, with "-" or "_". Keys of other commands
// are ignored, so that one file can serve all commands.
func (p *parser) fileParser(fs *flag.FlagSet) ff.ConfigFileParser {
	known := slices.DeleteFunc(slices.Sorted(maps.Keys(p.flags)), func(name string) bool { return name == "config" })

	return func(r io.Reader, set func(name, value string) error) error {
		text, err := io.ReadAll(r)
		if err != nil {
			return inFile(fs, err)
		}
		settings, err := parseFile(string(text))
		if err != nil {
			return inFile(fs, err)
		}

		for _, s := range settings {
			name := strings.ReplaceAll(s.key, "_", "-")
			if !slices.Contains(known, name) {
				return inFile(fs, unknown("key", s.key, known))
			}
			if fs.Lookup(name) == nil {
				continue
			}
			if err := set(name, s.value); err != nil {
				return inFile(fs, fmt.Errorf("key %q: %w", s.key, err))
			}
		}
		return nil
	}
}

// inFile names the configuration file in an error.
func inFile(fs *flag.FlagSet, err error) error {
	return fmt.Errorf("%s: %w", fs.Lookup("config").Value, err)
}

type setting struct{ key, value string }

func parseFile(text string) (settings []setting, err error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		return parseJSON(text)
	}

	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			return nil, fmt.Errorf("line %d: sections are not supported; write one \"key = value\" a line", n)
		}

		s := setting{line, "true"}
		if end := strings.IndexAny(line, "=: \t"); end >= 0 {
			s.key = line[:end]
			if s.value, err = parseValue(line[end:]); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		settings = append(settings, s)
	}
	return settings, nil
}

// parseValue reads what follows a key: a separator and a value, which may be
// quoted. A comment may follow.
func parseValue(text string) (string, error) {
	text = strings.TrimSpace(text)
	text = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(text, "="), ":"))

	if text != "" && (text[0] == '"' || text[0] == '\'') {
		closing := strings.LastIndexByte(text, text[0])
		if closing == 0 {
			return "", fmt.Errorf("no closing quote")
		}
		return text[1:closing], nil
	}

	value, _, _ := strings.Cut(text, " #")
	return strings.TrimSpace(value), nil
}

func parseJSON(text string) (settings []setting, err error) {
	var values map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&values); err != nil {
		return nil, err
	}

	for _, key := range slices.Sorted(maps.Keys(values)) {
		switch v := values[key].(type) {
		case string, json.Number, bool:
			settings = append(settings, setting{key, fmt.Sprint(v)})
		default:
			return nil, fmt.Errorf("key %q: must be a string, a number or a boolean", key)
		}
	}
	return settings, nil
}
