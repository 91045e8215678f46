package engine

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// shared is the token of an event and of its tombstone. The source gets its own token
// back when both are settled.
type shared struct {
	token any
	open  int // messages that are not settled
}

// addTombstones puts tombstones into the batch.
func (d *delivery) addTombstones(ctx context.Context) error {
	all, err := d.withTombstones(ctx, d.out.messages)
	if err != nil || all == nil {
		return err
	}
	if d.out.joined != nil {
		d.giveBack(d.out.joined)
	}
	d.out.joined, d.out.messages = all, all
	return nil
}

// withTombstones returns batch with a tombstone after each message that ends a key, nil
// if none does. A tombstone is ordered, parked and read back by its own key and id. So it
// does not wait for its event to be delivered.
func (p *publisher) withTombstones(ctx context.Context, batch []relay.Message) ([]relay.Message, error) {
	sink, ok := p.Sink.(relay.Tombstoner)
	if !ok {
		return nil, nil
	}
	var all []relay.Message
	for i := range batch {
		m := &batch[i]
		key := m.EndedKey()
		if key == "" {
			if all != nil {
				all = append(all, *m)
			}
			continue
		}
		t := []relay.Message{m.Tombstone(key)}
		if m.Op != relay.OpDelete && m.Err == nil {
			t[0].Subject = "" // the row before may have had another one
			p.transform(t, nil)
		}
		wanted := false
		err := p.retry(ctx, "ask whether tombstones are wanted", func() (err error) {
			if p.stopping.Err() != nil {
				return relay.Fatal(errStopped)
			}
			wanted, err = sink.Tombstones(ctx, &t[0])
			return err
		})
		if err != nil {
			return nil, err
		}
		if wanted && all == nil {
			all = append(p.borrow(len(batch)+len(batch)/4), batch[:i]...)
		}
		if all == nil {
			continue
		}
		if all = append(all, *m); wanted {
			token := &shared{m.Token, 2}
			all[len(all)-1].Token, t[0].Token = token, token
			if len(t[0].Row) > maxStored {
				t[0].Row = nil // it could not be stored as a dead letter
			}
			all = append(all, t[0])
		}
	}
	return all, nil
}

// whole returns batch for the source. The messages that share a token have their own one
// back, once all of them are settled; before that they are left out. batch stays as it
// is, because the publisher may read it.
func whole(batch []relay.Message) []relay.Message {
	at := 0
	for at < len(batch) {
		if _, ok := batch[at].Token.(*shared); ok {
			break
		}
		at++
	}
	if at == len(batch) {
		return batch
	}
	kept := append(make([]relay.Message, 0, len(batch)), batch[:at]...)
	for _, m := range batch[at:] {
		if s, ok := m.Token.(*shared); ok {
			if s.open--; s.open > 0 {
				continue
			}
			m.Token = s.token
		}
		kept = append(kept, m)
	}
	return kept
}
