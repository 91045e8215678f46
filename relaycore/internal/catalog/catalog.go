// Package catalog reads pipelines from PostgreSQL. It loads the rows, brings their
// two forms into one, reports the problems of each, and watches for changes.
package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Key identifies a pipeline.
type Key = store.Key

// Pipeline is one row of the catalog, normalised.
type Pipeline struct {
	Key
	Enabled bool
	// Backend is the backend's own name, or the name as spelled if this binary lacks
	// the backend.
	Backend string
	Linked  bool // this binary has the backend
	// Stored is the configuration as it is stored, references to secrets unresolved.
	Stored json.RawMessage
	// Revision changes with the configuration, and with the secrets it refers to. It changes
	// with each request for a snapshot, too, because a pipeline serves it when it starts.
	Revision string
	// Err is why the pipeline cannot be built. It contains no secret.
	Err error

	snapshot    int64 // id of the newest request for one
	malformed   error // the part of Err that does not depend on secrets
	access      *relaycfg.Access
	backend     relay.Backend
	common, own *section
}

// Resolved is a decoded configuration. Its secrets are in plain text, so it is made
// when the pipeline is built, and is not kept.
type Resolved struct {
	Settings Settings
	Backend  relay.Backend
	Config   any // what the backend's factory decoded, for its Open
	Access   *relaycfg.Access
}

// Resolve decodes the configuration with its references to secrets replaced.
// Its errors name keys as the row spells them.
func (p *Pipeline) Resolve() (Resolved, error) {
	if p.malformed != nil {
		return Resolved{}, p.malformed
	}
	common, commonErr := p.access.Expand(p.common.raw())
	own, ownErr := p.access.Expand(p.own.raw())
	if commonErr != nil || ownErr != nil {
		return Resolved{}, errors.Join(p.common.explain(commonErr), p.own.explain(ownErr))
	}
	if err := p.access.CheckFiles(p.own.keys, own); err != nil {
		return Resolved{}, p.own.explain(err)
	}
	settings, err := decodeSettings(p.Direction, common)
	err = p.common.conceal(err)
	var config any
	if p.Linked {
		var ownErr error
		config, ownErr = decode(p.backend, p.Direction, own)
		err = errors.Join(err, p.own.conceal(ownErr))
	}
	if err != nil {
		return Resolved{}, err
	}
	if p.Direction == relay.Forward {
		if err := p.ownSubject(&settings, own); err != nil {
			return Resolved{}, err
		}
	}
	return Resolved{Settings: settings, Backend: p.backend, Config: config, Access: p.access}, nil
}

// ownSubject gives the backend's own destination key precedence over subject_template.
func (p *Pipeline) ownSubject(s *Settings, own json.RawMessage) error {
	if p.backend.SubjectKey == "" {
		return nil
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(own, &values); err != nil {
		return err
	}
	for spelled, raw := range values {
		if name, _ := p.own.find(spelled); name != p.backend.SubjectKey {
			continue
		}
		if _, both := p.common.seen["subject_template"]; both {
			return relaycfg.Errorf(p.own.paths[spelled], "means the same as %q; keep one", p.common.seen["subject_template"])
		}
		if err := json.Unmarshal(raw, &s.SubjectTemplate); err != nil {
			return p.own.conceal(relaycfg.Errorf(spelled, "%s", err))
		}
	}
	return nil
}

// Concealer returns what hides the pipeline's secrets in logs, errors and tables.
func (p *Pipeline) Concealer() *relaycfg.Concealer {
	c := relaycfg.NewConcealer()
	if p.malformed == nil && p.own != nil {
		c.Add(p.access, p.common.keys, p.common.raw())
		c.Add(p.access, p.own.keys, p.own.raw())
	}
	return c
}

// Malformed reports whether Err remains whatever the secrets are.
func (p *Pipeline) Malformed() bool { return p.malformed != nil }

// Explain rewrites the keys in an error of the backend into the paths of the row. Such an
// error is fatal: it stays until an operator changes the key, or what it names.
func (p *Pipeline) Explain(err error) error {
	var e *relaycfg.Error
	if p.own == nil || !errors.As(err, &e) {
		return err
	}
	return relay.Fatal(p.own.conceal(err))
}

func decodeSettings(d relay.Direction, raw json.RawMessage) (Settings, error) {
	if d == relay.Forward {
		s := defaultForward()
		err := relaycfg.Decode(raw, &s)
		return Settings{Common: s.Common, Forward: s.Forward}, err
	}
	s := defaultReverse()
	err := relaycfg.Decode(raw, &s)
	return Settings{Common: s.Common, Reverse: s.Reverse}, err
}

// Snapshot is the catalog at one time, ordered by key.
type Snapshot []Pipeline

// Find returns the pipelines called name, in both directions.
func (s Snapshot) Find(name string) []Pipeline {
	var found []Pipeline
	for _, p := range s {
		if p.Name == name {
			found = append(found, p)
		}
	}
	return found
}

// Catalog loads snapshots. It is used by one goroutine.
type Catalog struct {
	reg    *relay.Registry
	access *relaycfg.Access
	seed   maphash.Seed
	known  map[Key]Pipeline // as of the last load
}

// New returns a catalog whose pipelines are checked against the backends of reg, and
// reach what access permits.
func New(reg *relay.Registry, access *relaycfg.Access) *Catalog {
	return &Catalog{reg: reg, access: access, seed: maphash.MakeSeed()}
}

// A configuration that is larger than set_relay_outbox accepts is not transferred: others
// may write to the tables. maxConfig is in bytes.
const (
	configSQL = `CASE WHEN pg_catalog.octet_length(config::text) <= 262144 THEN config::text ELSE '{}' END,
		pg_catalog.octet_length(config::text)`
	maxConfig = 256 << 10
)

// list_relay_configs leaves secrets out.
const tablesSQL = `
SELECT name, 'forward', enabled, ` + configSQL + `,
	coalesce((SELECT pg_catalog.max(r.id) FROM pgtrickle.relay_snapshot_requests r WHERE r.pipeline OPERATOR(pg_catalog.=) name), 0)
FROM pgtrickle.relay_outbox_config
UNION ALL
SELECT name, 'reverse', enabled, ` + configSQL + `, 0 FROM pgtrickle.relay_inbox_config`

// loadTimeout bounds one load: a database that does not answer must not end the polling.
const loadTimeout = time.Minute

// Load reads all pipelines. A row that is not valid becomes a pipeline with an Err.
func (c *Catalog) Load(ctx context.Context, db pg.Querier) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()

	rows, err := readRows(ctx, db)
	if err != nil {
		return nil, err
	}
	snapshot := make(Snapshot, 0, len(rows))
	known := make(map[Key]Pipeline, len(rows))
	for _, row := range rows {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("load pipelines: %w", ctx.Err())
		}
		p, same := c.known[Key{Direction: row.Direction, Name: row.Name}]
		// A configuration with references to secrets is resolved at every load.
		if !same || p.snapshot != row.snapshot || !bytes.Equal(p.Stored, row.Config) || bytes.Contains(row.Config, []byte("${")) {
			p = Normalise(row, c.reg, c.access)
			p.Revision, p.snapshot = c.revision(row), row.snapshot
		}
		p.Enabled = row.Enabled
		known[p.Key] = p
		snapshot = append(snapshot, p)
	}
	c.known = known
	slices.SortFunc(snapshot, func(a, b Pipeline) int { return a.Compare(b.Key) })
	return snapshot, nil
}

// Read reads all pipelines once, for a command. It decodes none: a command resolves those
// that it needs. A pipeline has no revision, and its Err is set only if its row is malformed.
func Read(ctx context.Context, db pg.Querier, reg *relay.Registry, access *relaycfg.Access) (Snapshot, error) {
	rows, err := readRows(ctx, db)
	if err != nil {
		return nil, err
	}
	snapshot := make(Snapshot, 0, len(rows))
	for _, row := range rows {
		snapshot = append(snapshot, split(row, reg, access))
	}
	slices.SortFunc(snapshot, func(a, b Pipeline) int { return a.Compare(b.Key) })
	return snapshot, nil
}

func readRows(ctx context.Context, db pg.Querier) (rows []Row, err error) {
	result, err := db.Query(ctx, tablesSQL)
	if err == nil {
		rows, err = pgx.CollectRows(result, scanRow)
	}
	switch {
	case pg.IsMissing(err):
		return nil, store.ErrNoCatalog
	case err != nil:
		return nil, fmt.Errorf("load pipelines: %w", err)
	}
	return rows, nil
}

func scanRow(r pgx.CollectableRow) (Row, error) {
	var row Row
	var config string
	err := r.Scan(&row.Name, &row.Direction, &row.Enabled, &config, &row.size, &row.snapshot)
	row.Config = json.RawMessage(config)
	return row, err
}

// revision covers the values of secrets, so that a rotated secret file restarts its
// pipeline. The hash of the values has no meaning outside this process.
func (c *Catalog) revision(row Row) string {
	sum := sha256.Sum256(fmt.Appendf(row.Config[:len(row.Config):len(row.Config)], "%d", row.snapshot))
	if !row.Enabled {
		return fmt.Sprintf("%x", sum[:8])
	}
	expanded, err := c.access.Expand(row.Config)
	if err != nil {
		return fmt.Sprintf("%x", sum[:8])
	}
	return fmt.Sprintf("%x-%x", sum[:8], maphash.Bytes(c.seed, expanded))
}
