package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// change is one event: a version of an order.
type change struct {
	id      int64
	version int
	op      string
}

// compare compares the committed changes with those that arrived at both ends.
func (d *demo) compare(ctx context.Context) error {
	show.step("Committed and arrived")
	want, err := d.committed(ctx)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := d.awaitInbox(waiting, len(want)); err != nil {
		show.bad("%v", err) // continue, to show the difference
	}
	if err := d.relay.stop(waiting); err != nil {
		return fmt.Errorf("stop the relay with SIGTERM: %w", err)
	}
	inStream, err := d.inStream(ctx)
	if err != nil {
		return err
	}
	inInbox, err := d.inInbox(ctx)
	if err != nil {
		return err
	}
	show.linef("%-34s %7d", "changes committed to public.orders", len(want))
	show.linef("%-34s %7d", "messages in NATS", len(inStream))
	show.linef("%-34s %7d", "rows in pgtrickle.orders_inbox", len(inInbox))
	equal := sameChanges("NATS", inStream, want)
	equal = sameChanges("the inbox", inInbox, want) && equal
	equal = inOrder(inStream) && equal
	if !equal {
		return errors.New("the changes that arrived are not those that were committed")
	}
	return nil
}

// committed returns every committed change. It reads the table, not the outbox: an
// order has had all versions up to its current one.
func (d *demo) committed(ctx context.Context) ([]change, error) {
	all := []change{{2, 1, "insert"}, {2, 1, "delete"}} // Grace's order, which was deleted
	rows, err := d.db.Query(ctx, "SELECT id, version FROM public.orders")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.id, &c.version); err != nil {
			return nil, err
		}
		all = append(all, change{c.id, 1, "insert"})
		for v := 2; v <= c.version; v++ {
			all = append(all, change{c.id, v, "update"})
		}
	}
	return all, rows.Err()
}

func (d *demo) inStream(ctx context.Context) (all []change, err error) {
	err = d.broker.read(ctx, stream, 1, 0, func(m jetstream.Msg) error {
		var e struct {
			Op      string `json:"op"`
			Payload struct {
				ID      int64 `json:"id"`
				Version int   `json:"version"`
			} `json:"payload"`
		}
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			return fmt.Errorf("a message in NATS is not JSON: %w", err)
		}
		all = append(all, change{e.Payload.ID, e.Payload.Version, e.Op})
		return nil
	})
	return all, err
}

func (d *demo) inInbox(ctx context.Context) (all []change, err error) {
	rows, err := d.db.Query(ctx, `
		SELECT (payload->>'id')::bigint, (payload->>'version')::int, split_part(event_type, '.', 3) FROM pgtrickle.orders_inbox`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.id, &c.version, &c.op); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// sameChanges reports whether got has each change of want exactly once, and no other.
func sameChanges(where string, got, want []change) bool {
	count := make(map[change]int, len(want))
	for _, c := range want {
		count[c]++
	}
	for _, c := range got {
		count[c]--
	}
	var lost, extra []change
	for c, n := range count {
		for ; n > 0; n-- {
			lost = append(lost, c)
		}
		for ; n < 0; n++ {
			extra = append(extra, c)
		}
	}
	if len(lost)+len(extra) == 0 {
		show.good("%s has every committed change once: 0 lost, 0 duplicates", where)
		return true
	}
	show.bad("%s: %d lost %v, %d duplicates or never committed %v", where, len(lost), firstFew(lost), len(extra), firstFew(extra))
	return false
}

// inOrder reports whether the versions of each order are in the order of their commits.
func inOrder(all []change) bool {
	last := make(map[int64]int)
	var wrong []change
	for _, c := range all {
		if c.version < last[c.id] {
			wrong = append(wrong, c)
		}
		last[c.id] = c.version
	}
	if len(wrong) > 0 {
		show.bad("%d changes arrived after a later one of the same order: %v", len(wrong), firstFew(wrong))
		return false
	}
	show.good("the changes of each of the %d orders are in the order of their commits", len(last))
	return true
}

func firstFew(all []change) []change {
	slices.SortFunc(all, func(a, b change) int { return int(a.id - b.id) })
	return all[:min(5, len(all))]
}
