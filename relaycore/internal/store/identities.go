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
	//go:embed sql/identify_outbox.sql
	identifyOutboxTemplate string
	identifyOutboxSQL      = strings.ReplaceAll(identifyOutboxTemplate, ":holder", holderSQL)
	//go:embed sql/fork.sql
	forkTemplate string
	forkSQL      = strings.ReplaceAll(forkTemplate, ":holder", holderSQL)
)

// OutboxIdentity distinguishes the rows of an outbox from those of all others in the world.
type OutboxIdentity struct {
	Name     string          // "" if the outbox has none yet
	LegacyTo int64           // ids up to it have been delivered under names of the old form
	Origin   json.RawMessage // where the outbox was when it got the identity
}

// newIdentity returns twelve characters that no other call returns: 60 random bits.
func newIdentity() string { return strings.ToLower(rand.Text()[:12]) }

// OutboxIdentity returns the identity of the outbox with that oid.
func (s Store) OutboxIdentity(ctx context.Context, outbox uint32) (id OutboxIdentity, err error) {
	err = s.db.QueryRow(ctx, outboxIdentitySQL, pgx.StrictNamedArgs{"outbox": outbox}).Scan(&id.Name, &id.LegacyTo, &id.Origin)
	if errors.Is(err, pgx.ErrNoRows) {
		return OutboxIdentity{}, nil
	}
	if err != nil {
		return OutboxIdentity{}, fmt.Errorf("read the identity of the outbox: %w", err)
	}
	return id, nil
}

// IdentifyOutbox gives an outbox, whose highest id is highest, an identity if it has
// none, or another one in place of instead. It returns what the outbox has then, which
// is none while an older relay runs in any group.
func (s Store) IdentifyOutbox(
	ctx context.Context, outbox uint32, instead string, origin json.RawMessage, highest int64,
) (OutboxIdentity, error) {
	_, err := s.db.Exec(ctx, identifyOutboxSQL, pgx.StrictNamedArgs{
		"outbox": outbox, "instead": instead, "identity": newIdentity(), "origin": string(origin), "highest": highest,
	})
	if err != nil {
		return OutboxIdentity{}, fmt.Errorf("give the outbox an identity: %w", err)
	}
	return s.OutboxIdentity(ctx, outbox)
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
