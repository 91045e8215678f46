package relaycmd

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// hideColumns hides four columns, each in another way.
const hideColumns = `"columns": {"exclude": ["secret"], "mask": {"email": "null", "phone": "hash", "card": "last4"},
	"salt": "a salt of sixteen bytes or more"}`

// No canary of a masked or excluded column leaves the outbox. The test looks at
// messages, dead letters, logs, commands, metrics and pages.
func TestColumnsCanary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `CREATE TABLE people (id int PRIMARY KEY, email text, phone text, card text, secret text, note text)`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.people')`)
	w.pipeline(t, "p", `"stream_table":"public.people","spool_whole":true,"spool_poison":"bad",`+hideColumns+`,"key_field":"phone",
		"subject_template":"people.{row.card}","headers":{"email":"{row.email}","card":"{row.card}"}`)
	poison := w.spool("p") + ".poison"
	if err := os.WriteFile(poison, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const values = `'CANARY-email', 'CANARY-phone-' || g % 7, 'CANARY-card-000' || g, 'CANARY-secret'`
	w.exec(t, `INSERT INTO people SELECT g, `+values+`, CASE g WHEN 3 THEN 'bad' ELSE 'fine' END FROM generate_series(1, 9) g`)
	w.exec(t, `UPDATE people SET note = 'changed', card = 'CANARY-card-0010' WHERE id = 1`)
	w.exec(t, `DELETE FROM people WHERE id = 2`)
	w.exec(t, `INSERT INTO pgtrickle.outbox_people (payload) VALUES ('{"v": 7, "email": "CANARY-unreadable"}'), ('[["CANARY-element"]]'), ('["CANARY-text"]')`)
	w.exec(t, `SELECT pgtrickle.outbox_publish('public.people', '{"id": 20, "email": "CANARY-email", "phone": "CANARY-phone-9", "card": "CANARY-card-0009"}',
		p_headers => '{"mail": "CANARY-email"}', p_key => 'CANARY-phone-9')`)

	before, _, _ := runBinary(t, nil, "preview", "p", "--postgres-url", w.url, "-n", "100", "--from", "1")
	p := startRelay(t, w.url, "--log-level", "debug")
	dead := func() (n int) {
		if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "dead letters and messages", patience, func() bool { return dead() == 4 && len(lineTexts(w.spool("p"))) == 11 })

	seen := map[string]string{"preview": before, "wire": read(t, w.spool("p")), "log": p.log.String(), "stored": w.stored(t)}
	for _, path := range []string{"/metrics", "/health", "/", "/status"} {
		_, seen[path] = p.get(path)
	}
	for _, args := range []string{"dlq list p", "dlq list p --id 1", "dlq summary", "status", "verify p", "check p", "preview p --from 1 --output json"} {
		out, errOut, _ := runBinary(t, nil, append(strings.Fields(args), "--postgres-url", w.url)...)
		seen[args] = out + errOut
	}
	noCanary(t, seen)
	for _, want := range []string{`****0001`, `hmac-sha256:`, `\"email\": null`} {
		if !strings.Contains(seen["wire"], want) {
			t.Errorf("no %s on the wire:\n%s", want, seen["wire"])
		}
	}

	// A dead letter that is delivered again has the key that parked the later ones.
	keys := func() (n int) {
		if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters WHERE key <> ''`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := os.Remove(poison); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `SELECT pgtrickle.relay_dlq_retry('p')`)
	eventually(t, "redrive", patience, func() bool { return keys() == 0 })
	sent := read(t, w.spool("p"))
	noCanary(t, map[string]string{"wire after a redrive": sent, "log": p.log.String()})
	if n := strings.Count(sent, hashOf(t, sent, ":3:0")); n < 2 {
		t.Errorf("the redriven message has another hash than its key:\n%s", sent)
	}
}

// The same for messages that go into an inbox.
func TestColumnsCanaryReverse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `SELECT pgtrickle.create_inbox('events')`)
	row := func(i int, note string) string {
		return fmt.Sprintf(`{"id": %d, "email": "CANARY-email", "phone": "CANARY-phone-%d", "card": "CANARY-card-0001", "secret": "CANARY-secret", "note": "%s"}`, i, i, note)
	}
	envelope := func(i int, note string) string {
		return fmt.Sprintf(`{"dedup_key":"o:%d:0","subject":"s","payload":%s,"op":"insert","is_full_refresh":false,"outbox_id":%d,"refresh_id":null}`, i, row(i, note), i)
	}
	input := []string{envelope(1, "fine"), envelope(2, `\u0000`), row(3, "fine"), row(4, `\u0000`), `CANARY`, `["CANARY"]`}
	if err := os.WriteFile(w.spool("in"), []byte(strings.Join(input, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('in', config => $1::jsonb)`, fmt.Sprintf(
		`{"inbox_table":"events","source_type":"spool","spool_path":%q,"aggregate_id_from":"body:payload.phone","event_type_from":"body:card",%s}`,
		w.spool("in"), hideColumns))
	w.exec(t, `SELECT pgtrickle.enable_relay('in')`)
	p := startRelay(t, w.url, "--log-level", "debug")
	counts := func() (arrived, dead int) {
		err := w.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pgtrickle.events), (SELECT count(*) FROM pgtrickle.relay_dead_letters)`).Scan(&arrived, &dead)
		if err != nil {
			t.Fatal(err)
		}
		return arrived, dead
	}
	eventually(t, "arrival", patience, func() bool { a, d := counts(); return a == 2 && d == 4 })
	var inbox string
	if err := w.pool.QueryRow(t.Context(), `SELECT json_agg(e)::text FROM pgtrickle.events e`).Scan(&inbox); err != nil {
		t.Fatal(err)
	}
	_, metrics := p.get("/metrics")
	noCanary(t, map[string]string{"inbox": inbox, "stored": w.stored(t), "log": p.log.String(), "metrics": metrics})
	if !strings.Contains(inbox, "hmac-sha256:") || !strings.Contains(inbox, "****0001") {
		t.Errorf("inbox: %s", inbox)
	}
}

// stored is all that the relay keeps in its own tables, bytes as text.
func (w *world) stored(t *testing.T) (all string) {
	t.Helper()
	err := w.pool.QueryRow(t.Context(), `SELECT concat_ws(chr(10),
		(SELECT string_agg(d::text || convert_from(d.body, 'UTF8') || coalesce(convert_from(d.before, 'UTF8'), ''), chr(10)) FROM pgtrickle.relay_dead_letters d),
		(SELECT string_agg(c::text, chr(10)) FROM pgtrickle.relay_cursors c))`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func noCanary(t *testing.T, seen map[string]string) {
	t.Helper()
	for where, text := range seen {
		if text == "" {
			t.Errorf("nothing in %s", where)
		}
		for line := range strings.Lines(text) {
			if strings.Contains(line, "CANARY") {
				t.Errorf("a canary in %s: %s", where, line)
			}
		}
	}
}

// hashOf returns the key of the message with this id.
func hashOf(t *testing.T, sent, id string) string {
	t.Helper()
	for line := range strings.Lines(sent) {
		if _, rest, found := strings.Cut(line, `hmac-sha256:`); found && strings.Contains(line, id) {
			return rest[:64]
		}
	}
	t.Fatalf("no message %s with a hash in:\n%s", id, sent)
	return ""
}

func lineTexts(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
