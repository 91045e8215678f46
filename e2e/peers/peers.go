package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// peer is a program that carries rows to Kafka.
type peer struct {
	name    string
	program string
	args    []string // $NAME stands for a variable of [job.environ]
	dir     string
	needs   string // another program
	drains  bool   // it ends after a backlog
	// insert writes row %[1]s, a bigint, in one statement.
	insert  string
	prepare func(context.Context, *job) error
	idle    bool // no program at all: the writers alone
}

// The row is about 200 bytes of JSON. Its table is public.bench in each database.
const (
	table = `CREATE TABLE public.bench (id bigint PRIMARY KEY, customer text NOT NULL, amount numeric NOT NULL,
		status text NOT NULL, created timestamptz NOT NULL, note text NOT NULL)`
	row = `SELECT %[1]s AS id, 'customer-' || %[1]s %% 5000 AS customer, round((%[1]s %% 9973) * 1.17, 2) AS amount,
		'confirmed' AS status, clock_timestamp() AS created, repeat('x', 80) AS note`
	plain = `INSERT INTO public.bench ` + row
	// own writes the row, and its event into an outbox without a trigger.
	own = `WITH r AS (` + plain + ` RETURNING *) INSERT INTO pgtrickle.outbox_bench (inserted_count, payload)
		SELECT 1, ('{"v":1,"inserted":[' || row_to_json(r) || '],"updated":[],"deleted":[]}')::json FROM r`
	// forwarded writes the row, and its event as Watermill's forwarder wants it.
	forwarded = `WITH r AS (` + plain + ` RETURNING *) INSERT INTO watermill_outbox (uuid, payload, metadata)
		SELECT gen_random_uuid()::text, json_build_object('destination_topic', current_setting('peers.topic'), 'uuid', r.id::text,
			'payload', encode(convert_to(row_to_json(r)::text, 'UTF8'), 'base64'), 'metadata', json_build_object()), '{}' FROM r`
)

// peers returns the programs. A copy is the limit: it leaves out all that makes a relay.
func peers(o options) []peer {
	relay := peer{
		name: "relay (trigger)", program: o.relay, insert: plain, prepare: prepareRelay(`SELECT pgtrickle.enable_outbox('public.bench')`, nil),
		args: []string{"--postgres-url", "$PEERS_URL", "--metrics-addr", "127.0.0.1:0", "--relay-group-id", "$PEERS_NAME"},
	}
	byHand := relay
	byHand.name, byHand.insert, byHand.prepare = "relay (own outbox)", own, prepareRelay(`SELECT pgtrickle.create_outbox('bench')`, nil)
	payload := byHand
	payload.name = "relay (own outbox, format payload)"
	payload.prepare = prepareRelay(`SELECT pgtrickle.create_outbox('bench')`, map[string]any{"format": "payload"})
	return []peer{
		{name: "nothing", program: "/proc/self/exe", insert: plain, prepare: prepareTable, idle: true},
		{
			name: "copy", program: filepath.Join(o.bin, "bench"), drains: true, insert: own, prepare: byHand.prepare,
			args: []string{"copy-kafka", "$PEERS_ROWS", "$PEERS_TOPIC"},
		},
		relay, byHand, payload,
		{
			name: "Debezium Server", program: filepath.Join(o.bin, "debezium-server/run.sh"), dir: filepath.Join(o.bin, "debezium-server"),
			needs: filepath.Join(o.bin, "java/bin/java"), insert: plain, prepare: prepareSlot,
		},
		{name: "Watermill forwarder", program: filepath.Join(o.bin, "watermill"), insert: forwarded, prepare: prepareWatermill},
		{name: "go-pq-cdc", program: filepath.Join(o.bin, "go-pq-cdc"), insert: plain, prepare: prepareSlot},
	}
}

func prepareTable(ctx context.Context, j *job) error { return j.exec(ctx, table) }

// prepareRelay makes an outbox, and a pipeline with keys beside those of the topic.
func prepareRelay(outbox string, keys map[string]any) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		if out, err := exec.CommandContext(ctx, j.b.o.relay, "migrate", "--postgres-url", j.url).CombinedOutput(); err != nil {
			return fmt.Errorf("migrate: %w: %s", err, out)
		}
		if err := j.exec(ctx, table, outbox); err != nil {
			return err
		}
		config := map[string]any{
			"stream_table": "bench", "sink_type": "kafka", "kafka_brokers": j.b.broker, "kafka_topic": j.topic, "key_template": "{row.id}",
		}
		maps.Copy(config, keys)
		raw, err := json.Marshal(config)
		if err != nil {
			return err
		}
		if _, err := j.pool.Exec(ctx, `SELECT pgtrickle.set_relay_outbox($1, config => $2::jsonb)`, j.name, string(raw)); err != nil {
			return err
		}
		_, err = j.pool.Exec(ctx, `SELECT pgtrickle.enable_relay($1)`, j.name)
		return err
	}
}

// prepareSlot makes a publication and a slot of the database's name.
func prepareSlot(ctx context.Context, j *job) error {
	return j.exec(ctx, table, `CREATE PUBLICATION `+j.name+` FOR TABLE public.bench WITH (publish = 'insert')`,
		`SELECT pg_create_logical_replication_slot('`+j.name+`', 'pgoutput')`)
}

// prepareWatermill makes the tables as the library's DefaultPostgreSQLSchema and
// DefaultPostgreSQLOffsetsAdapter would.
func prepareWatermill(ctx context.Context, j *job) error {
	return j.exec(ctx, table, `ALTER DATABASE `+j.name+` SET peers.topic = '`+j.topic+`'`,
		`CREATE TABLE watermill_outbox ("offset" bigserial, uuid varchar(36) NOT NULL, created_at timestamp NOT NULL DEFAULT current_timestamp,
			payload json DEFAULT NULL, metadata json DEFAULT NULL, transaction_id xid8 NOT NULL, PRIMARY KEY (transaction_id, "offset"))`,
		`ALTER TABLE watermill_outbox ALTER transaction_id SET DEFAULT pg_current_xact_id()`)
}

// job is one program at one measurement, with a database and a topic of that name.
type job struct {
	b           *bench
	peer        peer
	name, topic string
	url         string
	pool        *pgxpool.Pool
	folder      string
	rows        int // of the backlog
	poll        int // milliseconds, the poll interval of programs that have one
	cmd         *exec.Cmd
	rss         float64 // MiB, at its highest so far
	next        int     // the last row that was written
}

// environ holds what the programs' configurations refer to.
func (j *job) environ() ([]string, error) {
	u, err := url.Parse(j.url)
	if err != nil {
		return nil, err
	}
	return []string{
		"PEERS_URL=" + j.url, "PEERS_HOST=" + u.Hostname(), "PEERS_PORT=" + u.Port(), "PEERS_NAME=" + j.name,
		"PEERS_KAFKA=" + j.b.broker, "PEERS_TOPIC=" + j.topic, "PEERS_FOLDER=" + j.folder,
		fmt.Sprintf("PEERS_ROWS=%d", j.rows), fmt.Sprintf("PEERS_POLL=%d", j.poll),
		"RELAY_TEST_DATABASE_URL=" + j.url, // of the copy
		"JAVA_HOME=" + filepath.Join(j.b.o.bin, "java"), "JAVA_OPTS=-Xms512m -Xmx1g",
	}, nil
}

// start runs the program.
func (j *job) start(ctx context.Context) error {
	if j.peer.idle {
		return nil
	}
	env, err := j.environ()
	if err != nil {
		return err
	}
	vars := make(map[string]string)
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		vars[name] = value
	}
	args := make([]string, len(j.peer.args))
	for i, arg := range j.peer.args {
		args[i] = os.Expand(arg, func(name string) string { return vars[name] })
	}
	j.cmd = exec.CommandContext(ctx, j.peer.program, args...)
	j.cmd.Dir, j.cmd.Env = j.peer.dir, append(os.Environ(), env...)
	log, err := os.OpenFile(filepath.Join(j.folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	j.cmd.Stdout, j.cmd.Stderr = log, log
	return j.cmd.Start()
}

// logTail returns the end of what the program printed.
func (j *job) logTail() string {
	text, err := os.ReadFile(filepath.Join(j.folder, "log"))
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-1500):])
}

// statement returns the SQL that writes the row of that number.
func (p peer) statement(number string) string { return fmt.Sprintf(p.insert, number) }

// takesPart reports whether a measurement is one for the program.
func (p peer) takesPart(m measure) bool {
	switch {
	case p.drains:
		return m.all && m.rows > 0
	case p.idle:
		return m.all && m.rows == 0
	}
	return true
}
