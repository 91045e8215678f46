package store

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// idForm is the newest form of event ids that this relay makes. Instances state it, so
// that none begins with a form that another one does not know.
const idForm = 1

var (
	//go:embed sql/outbox_identity.sql
	outboxIdentitySQL string
	//go:embed sql/adopt_identities.sql
	adoptIdentitiesSQL string
	//go:embed sql/identify_outbox.sql
	identifyOutboxTemplate string
	identifyOutboxSQL      = strings.ReplaceAll(identifyOutboxTemplate, ":holder", holderSQL)
	//go:embed sql/fork.sql
	forkTemplate string
	forkSQL      = strings.ReplaceAll(forkTemplate, ":holder", holderSQL)
	//go:embed sql/instances_older.sql
	olderTemplate string
	olderSQL      = strings.ReplaceAll(olderTemplate, ":holder", holderSQL)
)

// OutboxIdentity distinguishes the rows of an outbox from those of all others in the world.
type OutboxIdentity struct {
	Name     string          // "" if the outbox has none yet
	LegacyTo int64           // ids up to it have been delivered under names of the old form
	Table    string          // the outbox's name when it was read last
	Origin   json.RawMessage // where the outbox was when it got the identity
}

// OutboxPlace is where an outbox is.
type OutboxPlace struct {
	OID    uint32
	Name   string // with its schema, quoted
	Origin json.RawMessage
}

// newIdentity returns twelve characters that no other call returns: 60 random bits.
func newIdentity() string { return strings.ToLower(rand.Text()[:12]) }

// OutboxIdentity returns the identity of the outbox with that oid.
func (s Store) OutboxIdentity(ctx context.Context, outbox uint32) (id OutboxIdentity, err error) {
	err = s.db.QueryRow(ctx, outboxIdentitySQL, pgx.StrictNamedArgs{"outbox": outbox}).Scan(&id.Name, &id.LegacyTo, &id.Table, &id.Origin)
	if errors.Is(err, pgx.ErrNoRows) {
		return OutboxIdentity{}, nil
	}
	if err != nil {
		return OutboxIdentity{}, fmt.Errorf("read the identity of the outbox: %w", err)
	}
	return id, nil
}

// AdoptIdentities gives the identities that were made in other databases to the outboxes
// that have their names here, because a dump and restore changes oids. System is "" if
// the role may not read it. Identities of names that are unknown here are deleted.
func (s Store) AdoptIdentities(ctx context.Context, system string, database uint32) error {
	_, err := s.db.Exec(ctx, adoptIdentitiesSQL, pgx.StrictNamedArgs{"system": system, "database": database})
	if err != nil {
		return fmt.Errorf("look up the restored identities of outboxes: %w", err)
	}
	return nil
}

// IdentifyOutbox gives an outbox, whose highest id is highest, an identity if it has
// none, or another one in place of instead. It returns what the outbox has then, which
// is none while an older relay runs in any group.
func (s Store) IdentifyOutbox(ctx context.Context, at OutboxPlace, instead string, highest int64) (OutboxIdentity, error) {
	_, err := s.db.Exec(ctx, identifyOutboxSQL, pgx.StrictNamedArgs{
		"outbox": at.OID, "name": at.Name, "origin": string(at.Origin),
		"instead": instead, "identity": newIdentity(), "highest": highest,
	})
	if err != nil {
		return OutboxIdentity{}, fmt.Errorf("give the outbox an identity: %w", err)
	}
	return s.OutboxIdentity(ctx, at.OID)
}

// MoveIdentity records where the outbox with that identity is now.
func (s Store) MoveIdentity(ctx context.Context, at OutboxPlace, identity string) error {
	_, err := s.db.Exec(ctx, `UPDATE pgtrickle.relay_outbox_identities SET name = $1, origin = $2::jsonb WHERE outbox = $3 AND identity = $4`,
		at.Name, string(at.Origin), at.OID, identity)
	if err != nil {
		return fmt.Errorf("record where the outbox is: %w", err)
	}
	return nil
}

// Fork gives every outbox of the database another identity, and returns how many have
// one. It is for a copy that nothing distinguishes from its original. A relay that runs
// keeps the identities that it has read, so Fork refuses while one does.
func (s Store) Fork(ctx context.Context) (int, error) {
	rows, err := s.db.Query(ctx, `SELECT outbox::oid::bigint FROM pgtrickle.relay_outbox_identities`)
	if err != nil {
		return 0, fmt.Errorf("list the outboxes: %w", err)
	}
	outboxes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(outboxes) == 0 {
		return 0, err
	}
	identities := make([]string, len(outboxes))
	for i := range identities {
		identities[i] = newIdentity()
	}
	tag, err := s.db.Exec(ctx, forkSQL, pgx.StrictNamedArgs{"outboxes": outboxes, "identities": identities})
	switch {
	case err != nil:
		return 0, fmt.Errorf("give the outboxes other identities: %w", err)
	case tag.RowsAffected() == 0:
		return 0, errors.New("a relay runs in this database; stop it first")
	}
	return int(tag.RowsAffected()), nil
}

// RefuseOlder returns an error that names one of the live instances, of any group, that
// know the old form of ids only. While there is one, no outbox gets its first identity.
func (s Store) RefuseOlder(ctx context.Context) error {
	var n int
	var name string
	err := s.db.QueryRow(ctx, olderSQL).Scan(&n, &name)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("list older relays: %w", err)
	}
	return fmt.Errorf("%d older relays run, one is %s: stop them, then run it again", n, name)
}
