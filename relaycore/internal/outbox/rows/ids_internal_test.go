package rows

import (
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestIDs(t *testing.T) {
	t.Parallel()
	ours := &table.Table{Name: "outbox_orders", Columns: table.Columns{Created: "created_at"}}
	own := &table.Table{Name: "events", Plain: true, Columns: table.Columns{Created: "created_at"}}
	both := IDs{Outbox: "outboxoutbox", Pipeline: "pipepipepipe", LegacyTo: 6}
	given := strings.Repeat("g", 60)
	e := func(id int64, given string) *event {
		e := &event{id: id, idText: []byte{'0' + byte(id)}, created: time.UnixMicro(36)}
		if given != "" {
			e.given = []byte(given)
		}
		return e
	}
	for name, tc := range map[string]struct {
		table    *table.Table
		ids      IDs
		event    *event
		index    int
		id       string
		delivery string
	}{
		"no identity":           {ours, IDs{Pipeline: "pipepipepipe"}, e(7, ""), 0, "outbox_orders:7:0", "outbox_orders:7:0"},
		"up to the boundary":    {ours, both, e(6, ""), 2, "outbox_orders:6:2", "outbox_orders:6:2"},
		"behind the boundary":   {ours, both, e(7, ""), 2, "outboxoutbox.10:7:2", "pipepipepipe.outboxoutbox.10:7:2"},
		"a table of one's own":  {own, both, e(7, ""), 0, "outboxoutbox:7:0", "pipepipepipe.outboxoutbox:7:0"},
		"given":                 {ours, both, e(7, "e-1"), 0, "e-1", "pipepipepipe.e-1"},
		"given, old":            {ours, both, e(6, "e-1"), 0, "e-1", "e-1"},
		"given, long":           {ours, both, e(7, given), 0, given, relay.DeliveryID("pipepipepipe", given)},
		"given, second message": {ours, both, e(7, "e-1"), 1, "outboxoutbox.10:7:1", "pipepipepipe.outboxoutbox.10:7:1"},
		"no pipeline":           {ours, IDs{Outbox: "outboxoutbox"}, e(7, ""), 0, "outboxoutbox.10:7:0", "outboxoutbox.10:7:0"},
	} {
		ids := newIDs(tc.table, tc.ids)
		text, at := ids.append([]byte("before"), tc.event, tc.index)
		id := string(text[at:])
		if delivery := ids.delivery(string(text[len("before"):]), id); id != tc.id || delivery != tc.delivery || len(delivery) > max(relay.MaxDeliveryID, len(id)) {
			t.Errorf("%s: id %q, delivery %q; want %q and %q", name, id, delivery, tc.id, tc.delivery)
		}
	}
}
