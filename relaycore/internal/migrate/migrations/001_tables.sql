-- The catalog's tables. Where pg_trickle owns one of its own, that one is kept.

-- +table pgtrickle.relay_outbox_config: forward pipelines, outbox to broker
CREATE TABLE pgtrickle.relay_outbox_config (
    name    text    NOT NULL PRIMARY KEY,
    enabled boolean NOT NULL DEFAULT true,
    config  jsonb   NOT NULL
);
-- +end

-- +table pgtrickle.relay_inbox_config: reverse pipelines, broker to inbox
CREATE TABLE pgtrickle.relay_inbox_config (
    name    text    NOT NULL PRIMARY KEY,
    enabled boolean NOT NULL DEFAULT true,
    config  jsonb   NOT NULL
);
-- +end

-- +table pgtrickle.relay_consumer_offsets: public view of how far each forward pipeline is
CREATE TABLE pgtrickle.relay_consumer_offsets (
    relay_group_id text        NOT NULL,
    pipeline_id    text        NOT NULL,
    last_change_id bigint      NOT NULL DEFAULT 0,
    worker_id      text,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (relay_group_id, pipeline_id)
);
-- +end

-- +table pgtrickle.relay_instances: relay processes; lock_key is held as an advisory lock for as long as the process lives
CREATE TABLE pgtrickle.relay_instances (
    instance_id    text        NOT NULL PRIMARY KEY,
    relay_group_id text        NOT NULL,
    binary_name    text,
    version        text,
    backends       text[]      NOT NULL,
    hostname       text,
    pid            integer,
    lock_key       bigint      NOT NULL,
    draining       boolean     NOT NULL DEFAULT false,
    started_at     timestamptz NOT NULL DEFAULT now()
);
-- +end

-- +table pgtrickle.relay_cursors: checkpoint and lease epoch of each pipeline in each group
-- Rewritten at every checkpoint: the free space in each page keeps the updates HOT.
CREATE TABLE pgtrickle.relay_cursors (
    relay_group_id    text        NOT NULL,
    direction         text        NOT NULL CHECK (direction IN ('forward', 'reverse')),
    pipeline          text        NOT NULL,
    epoch             bigint      NOT NULL DEFAULT 0,
    owner             text,
    source            text,
    checkpoint        jsonb,
    last_id           bigint      NOT NULL DEFAULT 0,
    sink_position     text,
    far_ends          jsonb,
    delivered         bigint      NOT NULL DEFAULT 0,
    skipped           bigint      NOT NULL DEFAULT 0,
    filtered          bigint      NOT NULL DEFAULT 0,
    dead_lettered     bigint      NOT NULL DEFAULT 0,
    system_identifier text,
    status            text        NOT NULL DEFAULT 'new',
    error             text,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (relay_group_id, direction, pipeline)
) WITH (fillfactor = 50);
-- +end
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS far_ends jsonb;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS filtered bigint NOT NULL DEFAULT 0;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS identity text;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS expired bigint NOT NULL DEFAULT 0;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS unexpected bigint NOT NULL DEFAULT 0;

-- Relays that do not know identities write no id_form.
ALTER TABLE pgtrickle.relay_instances ADD COLUMN IF NOT EXISTS id_form smallint NOT NULL DEFAULT 0;

-- +table pgtrickle.relay_outbox_identities: what tells the rows of an outbox from those of all others in the world
CREATE TABLE pgtrickle.relay_outbox_identities (
    outbox    oid         NOT NULL PRIMARY KEY,
    identity  text        NOT NULL,
    origin    jsonb       NOT NULL,
    legacy_to bigint      NOT NULL,
    made_at   timestamptz NOT NULL DEFAULT now()
);
-- +end
-- A dump and restore changes oids; the relay finds an outbox in another database by this.
ALTER TABLE pgtrickle.relay_outbox_identities ADD COLUMN IF NOT EXISTS name text;

-- +table pgtrickle.relay_dead_letters: messages that no retry can deliver, and those parked behind one of the same key
CREATE TABLE pgtrickle.relay_dead_letters (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_group_id text        NOT NULL,
    direction      text        NOT NULL CHECK (direction IN ('forward', 'reverse')),
    pipeline       text        NOT NULL,
    message_id     text        NOT NULL,
    key            text        NOT NULL DEFAULT '',
    subject        text,
    op             text,
    body           bytea       NOT NULL,
    before         bytea,
    content_type   text,
    headers        jsonb       NOT NULL DEFAULT '[]',
    stream_table   text,
    outbox_id      bigint,
    refresh_id     text,
    full_refresh   boolean     NOT NULL DEFAULT false,
    origin         text,
    message_time   timestamptz,
    error          text        NOT NULL,
    class          text        NOT NULL,
    attempts       integer     NOT NULL DEFAULT 1,
    status         text        NOT NULL CHECK (status IN ('dead', 'parked', 'retry')),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (relay_group_id, direction, pipeline, message_id)
);
-- +end

ALTER TABLE pgtrickle.relay_dead_letters ADD COLUMN IF NOT EXISTS by_reference boolean NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS relay_dead_letters_by_key
    ON pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, key, id);

-- +table pgtrickle.relay_snapshots: for each pipeline that compares snapshots, how far it is in its outbox
CREATE TABLE pgtrickle.relay_snapshots (
    id             bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_group_id text     NOT NULL,
    pipeline       text     NOT NULL,
    outbox_table   bigint   NOT NULL,
    sequence_file  bigint   NOT NULL,
    emitted_id     bigint   NOT NULL,
    compared_id    bigint   NOT NULL,
    removed_id     bigint   NOT NULL,
    full_refresh   boolean  NOT NULL,
    columns        text[],
    UNIQUE (relay_group_id, pipeline)
);
-- +end

-- +table pgtrickle.relay_snapshot_rows: the rows of the last snapshot that was compared
CREATE TABLE pgtrickle.relay_snapshot_rows (
    snapshot_id bigint  NOT NULL,
    row_id      text    NOT NULL,
    occurrence  integer NOT NULL,
    hash        bytea   NOT NULL,
    row         jsonb   NOT NULL,
    PRIMARY KEY (snapshot_id, row_id, occurrence)
);
-- +end

-- +table pgtrickle.relay_snapshot_changes: the changes that outbox rows brought, until they are delivered
CREATE TABLE pgtrickle.relay_snapshot_changes (
    snapshot_id  bigint  NOT NULL,
    outbox_id    bigint  NOT NULL,
    n            integer NOT NULL,
    op           text    NOT NULL,
    row_id       text    NOT NULL,
    occurrence   integer NOT NULL,
    full_refresh boolean NOT NULL,
    row          jsonb   NOT NULL,
    before       jsonb,
    PRIMARY KEY (snapshot_id, outbox_id, n)
);
-- +end

-- +table pgtrickle.relay_snapshot_requests: what relay_snapshot asked for; the newest of a pipeline counts
CREATE TABLE pgtrickle.relay_snapshot_requests (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text        NOT NULL,
    requested_by text        NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    in_xid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    cancels      boolean     NOT NULL DEFAULT false,
    rows         bigint,
    finished_at  timestamptz,
    error        text
);
CREATE INDEX relay_snapshot_requests_by_pipeline ON pgtrickle.relay_snapshot_requests (pipeline, id);
-- +end

-- +table pgtrickle.relay_snapshot_keys: the primary keys that a condition selected, up to 1,000 in a row
CREATE TABLE pgtrickle.relay_snapshot_keys (
    request bigint  NOT NULL REFERENCES pgtrickle.relay_snapshot_requests ON DELETE CASCADE,
    block   integer NOT NULL,
    keys    text[]  NOT NULL,
    PRIMARY KEY (request, block)
);
-- +end

-- +table pgtrickle.relay_backend_keys: what each backend accepts in a configuration; backend * holds the keys of every pipeline
CREATE TABLE pgtrickle.relay_backend_keys (
    backend       text    NOT NULL,
    direction     text    NOT NULL CHECK (direction IN ('forward', 'reverse')),
    key           text    NOT NULL,
    type          text    NOT NULL,
    required      boolean NOT NULL DEFAULT false,
    aliases       text[]  NOT NULL DEFAULT '{}',
    enum          text[]  NOT NULL DEFAULT '{}',
    doc           text    NOT NULL DEFAULT '',
    unit          text,
    minimum       bigint,
    default_value jsonb,
    position      integer NOT NULL DEFAULT 0,
    PRIMARY KEY (backend, direction, key)
);
-- +end

-- Outboxes and inboxes: the extension's own catalog where it is installed.

-- +plain-table pgtrickle.pgt_outbox_config: outboxes; stream_table_oid is the table's oid
CREATE TABLE pgtrickle.pgt_outbox_config (
    stream_table_oid   oid         NOT NULL PRIMARY KEY,
    stream_table_name  text        NOT NULL,
    outbox_table_name  text        NOT NULL CONSTRAINT uq_outbox_table_name UNIQUE,
    retention_hours    integer     NOT NULL DEFAULT 24,
    created_at         timestamptz NOT NULL DEFAULT now(),
    last_drained_at    timestamptz,
    last_drained_count bigint      NOT NULL DEFAULT 0
);
CREATE INDEX idx_pgt_outbox_config_name ON pgtrickle.pgt_outbox_config (stream_table_name);
-- +end

-- +plain-table pgtrickle.relay_outboxes: what the extension's catalog has no column for: where an outbox's rows come from
-- Names and not oids, because a dump and restore changes oids.
CREATE TABLE pgtrickle.relay_outboxes (
    outbox_table_name text NOT NULL PRIMARY KEY,
    stream_schema     text,
    stream_table      text,
    capture_function  text,
    truncate_policy   text NOT NULL DEFAULT 'delete' CHECK (truncate_policy IN ('delete', 'refuse', 'ignore')),
    granted_to        text
);
-- +end

-- +plain-table pgtrickle.pgt_consumer_groups: consumer groups of outboxes
CREATE TABLE pgtrickle.pgt_consumer_groups (
    group_name        text NOT NULL PRIMARY KEY,
    outbox_name       text NOT NULL,
    auto_offset_reset text NOT NULL DEFAULT 'latest' CHECK (auto_offset_reset IN ('earliest', 'latest')),
    created_at        timestamptz DEFAULT now()
);
CREATE INDEX idx_pgt_consumer_groups_outbox ON pgtrickle.pgt_consumer_groups (outbox_name);
-- +end

-- +plain-table pgtrickle.pgt_consumer_offsets: offsets of consumers
CREATE TABLE pgtrickle.pgt_consumer_offsets (
    group_name        text        NOT NULL REFERENCES pgtrickle.pgt_consumer_groups ON DELETE CASCADE,
    consumer_id       text        NOT NULL,
    committed_offset  bigint      NOT NULL DEFAULT 0,
    last_committed_at timestamptz,
    last_heartbeat_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (group_name, consumer_id)
);
-- +end

-- +plain-table pgtrickle.pgt_consumer_leases: batches that consumers hold
CREATE TABLE pgtrickle.pgt_consumer_leases (
    group_name    text        NOT NULL,
    consumer_id   text        NOT NULL,
    batch_start   bigint      NOT NULL,
    batch_end     bigint      NOT NULL,
    lease_expires timestamptz NOT NULL,
    PRIMARY KEY (group_name, consumer_id),
    FOREIGN KEY (group_name, consumer_id) REFERENCES pgtrickle.pgt_consumer_offsets ON DELETE CASCADE
);
-- +end

-- +plain-table pgtrickle.pgt_inbox_config: inboxes
CREATE TABLE pgtrickle.pgt_inbox_config (
    inbox_name          text        NOT NULL,
    inbox_schema        text        NOT NULL DEFAULT 'pgtrickle',
    max_retries         integer     NOT NULL DEFAULT 3,
    schedule            text        NOT NULL DEFAULT '1s',
    with_dead_letter    boolean     NOT NULL DEFAULT true,
    with_stats          boolean     NOT NULL DEFAULT true,
    retention_hours     integer     NOT NULL DEFAULT 72,
    id_column           text        NOT NULL DEFAULT 'event_id',
    processed_at_column text        NOT NULL DEFAULT 'processed_at',
    retry_count_column  text        NOT NULL DEFAULT 'retry_count',
    error_column        text        NOT NULL DEFAULT 'error',
    received_at_column  text        NOT NULL DEFAULT 'received_at',
    event_type_column   text        NOT NULL DEFAULT 'event_type',
    is_managed          boolean     NOT NULL DEFAULT true,
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (inbox_schema, inbox_name)
);
-- +end

-- +plain-table pgtrickle.pgt_inbox_ordering_config: order of inboxes
CREATE TABLE pgtrickle.pgt_inbox_ordering_config (
    inbox_name       text        NOT NULL PRIMARY KEY,
    aggregate_id_col text        NOT NULL,
    sequence_num_col text        NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now()
);
-- +end

-- +plain-table pgtrickle.pgt_inbox_priority_config: priorities of inboxes
CREATE TABLE pgtrickle.pgt_inbox_priority_config (
    inbox_name   text        NOT NULL PRIMARY KEY,
    priority_col text        NOT NULL,
    tiers        jsonb,
    created_at   timestamptz NOT NULL DEFAULT now()
);
-- +end
