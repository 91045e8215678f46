package relaycmd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// connect opens a pool for a command and proves that the database answers.
func (p *program) connect(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := poolConfig(p.opts.postgresURL, p.name, 4)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, explainConnect(err)
	}
	return pool, nil
}

// explainConnect says what an operator can do about it.
func explainConnect(err error) error {
	var pgErr *pgconn.PgError
	hint := "is the server running, and does it accept connections at the address in --postgres-url?"
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "28P01", "28000":
			hint = "check user and password in --postgres-url, and the server's pg_hba.conf"
		case "3D000":
			hint = "check the database's name in --postgres-url"
		case "53300":
			hint = "the server has no free connections; raise its max_connections or lower --max-connections"
		case "57P03":
			hint = "the server is starting or stopping"
		default:
			hint = ""
		}
	}
	if hint == "" {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return fmt.Errorf("connect to PostgreSQL: %w; %s", err, hint)
}

// load connects, makes sure that the catalog is there, and reads the pipelines.
func (p *program) load(ctx context.Context) (*pgxpool.Pool, catalog.Snapshot, error) {
	pool, err := p.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	missing, err := migrate.Missing(ctx, pool)
	if err == nil && len(missing) > 0 {
		err = errors.New(strings.Join(missing, "\n"))
	}
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	snapshot, err := catalog.New(p.registry).Load(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	return pool, snapshot, nil
}

// forward finds the forward pipeline of that name, fit to be built.
func (p *program) forward(snapshot catalog.Snapshot, name string) (catalog.Pipeline, error) {
	var names []string
	for _, pl := range snapshot {
		if pl.Name == name && pl.Direction == relay.Forward {
			return pl, pl.Err
		}
		names = append(names, pl.Name)
	}
	if len(snapshot.Find(name)) > 0 {
		return catalog.Pipeline{}, fmt.Errorf("pipeline %q is a reverse one; its messages are in the broker, and reading them would take them", name)
	}
	return catalog.Pipeline{}, fmt.Errorf("pipeline %q not found; there are: %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}

func runMigrate(ctx context.Context, p *program, _ []string) error {
	specs := migrate.Specs(p.registry.Backends())
	if p.opts.printSQL {
		text, err := migrate.SQL(specs)
		if err != nil {
			return err
		}
		_, err = io.WriteString(p.stdout, text)
		return err
	}
	if err := p.opts.requireDatabase(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate.Up(ctx, pool, specs); err != nil {
		return err
	}
	missing, err := lacking(ctx, pool)
	if err != nil {
		return err
	}
	if p.opts.json() {
		return p.printJSON(map[string]any{"migrated": true, "missing": append([]string{}, missing...)})
	}
	fmt.Fprintln(p.stdout, "the catalog is up to date")
	for _, m := range missing {
		fmt.Fprintln(p.stdout, "still missing for this role:", m)
	}
	return nil
}

// lacking returns what the catalog lacks or, when that is nothing, what single
// outboxes and inboxes do.
func lacking(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	missing, err := migrate.Missing(ctx, pool)
	if err != nil || len(missing) > 0 {
		return missing, err
	}
	denied, err := migrate.Denied(ctx, pool)
	for _, d := range denied {
		missing = append(missing, d+": "+migrate.GrantAccess)
	}
	return missing, err
}

// letter is a dead letter as dlq list prints it.
type letter struct {
	ID        int64           `json:"id"`
	Group     string          `json:"group"`
	Direction string          `json:"direction"`
	Pipeline  string          `json:"pipeline"`
	MessageID string          `json:"message_id"`
	Key       string          `json:"key"`
	Subject   string          `json:"subject"`
	Op        string          `json:"op"`
	Status    string          `json:"status"`
	Class     string          `json:"class"`
	Error     string          `json:"error"`
	Attempts  int             `json:"attempts"`
	Size      int64           `json:"size"`
	Body      string          `json:"body"` // as text; bytes that are not UTF-8 are replaced
	Headers   json.RawMessage `json:"headers"`
	Created   time.Time       `json:"created_at"`
}

func runLetters(ctx context.Context, p *program, args []string) error {
	action := strings.TrimPrefix(p.command, "dlq ")
	filters, filtered, err := p.opts.letterFilters(args)
	if err != nil {
		return err
	}
	if action == "discard" && !filtered && !p.opts.all {
		return errors.New("dlq discard drops messages for good: say which with --id, --key, --class, --after or --before, or say --all")
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	pool, _, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if action == "list" {
		return p.listLetters(ctx, pool, filters)
	}
	var n int64
	sql := `SELECT pgtrickle.relay_dlq_` + action + `($1, $2, $3, $4, $5, $6, $7, $8)`
	if err := pool.QueryRow(ctx, sql, filters...).Scan(&n); err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Hint != "" {
			err = fmt.Errorf("%s; %s", pg.Message, pg.Hint)
		}
		return fmt.Errorf("dlq %s: %w", action, err)
	}
	if p.opts.json() {
		return p.printJSON(map[string]any{"action": action, "letters": n})
	}
	fmt.Fprintf(p.stdout, "%s: %d dead letters\n", action, n)
	return nil
}

// letterFilters are the arguments of the SQL functions.
func (o *options) letterFilters(args []string) (filters []any, filtered bool, err error) {
	var ids []int64
	for s := range strings.SplitSeq(o.ids, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		id, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("--id: %q is not a number", s)
		}
		ids = append(ids, id)
	}
	times := make([]*time.Time, 2)
	for i, f := range []struct{ flag, value string }{{"before", o.before}, {"after", o.after}} {
		if f.value == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, f.value)
		if err != nil {
			return nil, false, fmt.Errorf("--%s: %q is not a time such as 2026-01-31T10:00:00Z", f.flag, f.value)
		}
		times[i] = &t
	}
	var pipeline *string
	if len(args) > 0 {
		pipeline = &args[0]
	}
	filters = []any{pipeline, orNull(o.direction), ids, orNull(o.key), orNull(o.class), times[0], times[1], o.group}
	return filters, len(ids) > 0 || o.key != "" || o.class != "" || times[0] != nil || times[1] != nil, nil
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (p *program) listLetters(ctx context.Context, pool *pgxpool.Pool, filters []any) error {
	rows, err := pool.Query(ctx, `
		SELECT id, relay_group_id, direction, pipeline, message_id, key, coalesce(subject, ''), coalesce(op, ''), status, class, error, attempts,
			size, body, headers, created_at
		FROM pgtrickle.relay_dlq_list($1, $2, $3, $4, $5, $6, $7, $8)`, filters...)
	if err != nil {
		return fmt.Errorf("dlq list: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (letter, error) {
		var l letter
		var body []byte
		err := r.Scan(&l.ID, &l.Group, &l.Direction, &l.Pipeline, &l.MessageID, &l.Key, &l.Subject, &l.Op, &l.Status, &l.Class, &l.Error, &l.Attempts,
			&l.Size, &body, &l.Headers, &l.Created)
		l.Body = strings.ToValidUTF8(string(body), "\uFFFD")
		return l, err
	})
	if err != nil {
		return fmt.Errorf("dlq list: %w", err)
	}
	if p.opts.json() {
		return p.printJSON(letters)
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tPIPELINE\tDIRECTION\tSTATUS\tCLASS\tATTEMPTS\tKEY\tMESSAGE\tSTORED\tERROR")
	for _, l := range letters {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", l.ID, l.Pipeline, l.Direction, l.Status, l.Class, l.Attempts, l.Key, l.MessageID,
			l.Created.UTC().Format(time.RFC3339), strings.ReplaceAll(l.Error, "\n", " "))
	}
	return w.Flush()
}

// runHealthcheck asks a running relay on this machine, for container images that
// have nothing else to ask with.
func runHealthcheck(ctx context.Context, p *program, _ []string) error {
	url := p.opts.url
	if url == "" {
		host, port, err := net.SplitHostPort(p.opts.metricsAddr)
		if err != nil {
			return fmt.Errorf("--metrics-addr: %w", err)
		}
		if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
			host = "127.0.0.1"
		}
		path := "/health"
		if p.opts.live {
			path = "/livez"
		}
		url = "http://" + net.JoinHostPort(host, port) + path
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthcheck: %s says %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	fmt.Fprintln(p.stdout, "ok")
	return nil
}
