package pipeline

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestKeyTextByType: a row has the same key from an outbox of type json and of type
// jsonb. So outbox_upgrade moves no key to another partition.
func TestKeyTextByType(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(`CREATE TYPE mood AS ENUM ('fine', 'so "so"'); CREATE DOMAIN positive AS numeric CHECK (value > 0)`)
	keys := func(table string, columns []string) (keys []string) {
		t.Helper()
		src, err := outbox.Open(t.Context(), pool, outbox.Config{Outbox: "public." + table, Logger: discard})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		batch, err := src.Look(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		e, err := codec.NewEncoder(codec.EncoderConfig{KeyColumns: columns})
		if err != nil {
			t.Fatal(err)
		}
		e.Encode(batch, nil)
		for _, m := range batch {
			if m.Err != nil {
				t.Errorf("%s: %v", table, m.Err)
			}
			keys = append(keys, m.Key)
		}
		return keys
	}
	for i, tc := range []struct{ typ, values string }{
		{"smallint", `(-1), (32767)`},
		{"bigint", `(9223372036854775807), (0)`},
		{"numeric", `(12.50), (1e30), (0.000000001), (-0.0), ('NaN')`},
		{"numeric(10,2)", `(7), (1.5)`},
		{"positive", `(1.10)`},
		{"real", `(0.1), (1e20), (1e-7), (16777216), ('Infinity'), ('NaN')`},
		{"double precision", `(0.1), (1e20), (-1.5e-7), (1e15), (123456789012345680000), (1e-300), (1e300), (0), ('-Infinity')`},
		{"boolean", `(true), (false)`},
		{"text", `('a"b'), (E'\\'), (E'tab\tline\nend'), ('a/b'), ('é'), ('𝄞'), (''), (' '), (E'\x7f'), (E'\x01')`},
		{"varchar(9)", `('x')`},
		{"char(5)", `('x')`},
		{"name", `('n')`},
		{`"char"`, `('c')`},
		{"mood", `('so "so"')`},
		{"uuid", `('0af76519-16cd-43dd-8448-eb211c80319c')`},
		{"bytea", `('\x00ff22')`},
		{"bit(3)", `(b'101')`},
		{"date", `('2024-02-29'), ('infinity'), ('0044-03-15 BC')`},
		{"time", `('01:02:03.5')`},
		{"timetz", `('01:02:03+02')`},
		{"timestamp", `('2024-02-29 01:02:03.000001'), ('infinity')`},
		{"timestamptz", `('2024-02-29 01:02:03.5+02'), ('-infinity')`},
		{"interval", `('1 year 2 days 03:04:05.6'), ('-1 day')`},
		{"inet", `('10.0.0.1/8')`},
		{"macaddr", `('08:00:2b:01:02:03')`},
		{"money", `(1.5)`},
		{"int4range", `('[1,5)')`},
		{"tstzrange", `('[2024-01-01 00:00+00,)')`},
		{"oid", `(7)`},
		{"pg_lsn", `('0/16B3748')`},
	} {
		table := fmt.Sprintf("k%d", i)
		exec(fmt.Sprintf(`CREATE TABLE %[1]s (id %[2]s PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.%[1]s'); INSERT INTO %[1]s VALUES %[3]s`,
			table, tc.typ, tc.values))
		json := keys(table, []string{"id"})
		exec(`ALTER TABLE pgtrickle.outbox_` + table + ` ALTER COLUMN payload TYPE jsonb USING payload::jsonb`)
		jsonb := keys(table, []string{"id"})
		if len(json) == 0 || fmt.Sprintf("%q", json) != fmt.Sprintf("%q", jsonb) {
			t.Errorf("%s: keys %q from json, %q from jsonb", tc.typ, json, jsonb)
		}
	}
}
