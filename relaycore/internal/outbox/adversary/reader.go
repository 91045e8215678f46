package adversary

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Environment of the reader's process.
const (
	envURL      = "ADVERSARY_READER_URL"
	envStrategy = "ADVERSARY_READER_STRATEGY"
)

// ReaderMain reads the outbox and writes what it delivers to standard output
// until it is killed. It does nothing when it was not started as a reader.
func ReaderMain(ctx context.Context) (was bool, err error) {
	url, strategy := os.Getenv(envURL), os.Getenv(envStrategy)
	if url == "" {
		return false, nil
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	if strategy == Naive {
		return true, naive(ctx, url, out)
	}
	return true, read(ctx, url, strategy, out)
}

// read publishes, then checkpoints, as the engine does: a crash between the two
// repeats messages and loses none.
func read(ctx context.Context, url, strategy string, out *bufio.Writer) error {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "adversary-reader"
	config.AfterConnect = outbox.Tune
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	var c relay.Checkpoint
	var epoch int64
	var raw []byte
	const begin = "UPDATE cursor SET epoch = epoch + 1 RETURNING state::text, last_id, epoch"
	if err := pool.QueryRow(ctx, begin).Scan(&raw, &c.LastID, &epoch); err != nil {
		return err
	}
	c.State = raw
	src, err := outbox.Open(ctx, pool, outbox.Config{
		Outbox: "outbox_ledger", Checkpoint: c, Settings: outbox.Settings{Strategy: strategy, SequenceCache: "accept"},
	})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(uint64(epoch), uint64(os.Getpid())))
	received, failed := make(chan []relay.Message), make(chan error, 1)
	go receive(ctx, src, epoch, received, failed)
	idle := time.NewTicker(100 * time.Millisecond)
	defer idle.Stop()
	var flying []relay.Message // published and not yet acknowledged
	for {
		var msgs []relay.Message
		select {
		case err := <-failed:
			return err
		case msgs = <-received:
		case <-src.Moved(): // checkpoints move without messages, too
		case <-idle.C:
		}
		for i := range msgs {
			if msgs[i].OutboxID <= c.LastID {
				return fmt.Errorf("row %d came after all up to %d was reported as settled", msgs[i].OutboxID, c.LastID)
			}
			if msgs[i].Err != nil {
				return msgs[i].Err
			}
			if err := publish(out, msgs[i].Row); err != nil {
				return err
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		// Acknowledge late and out of order: what stays behind is of other keys.
		flying = append(flying, msgs...)
		var settled []relay.Message
		if len(msgs) == 0 || len(flying) > 5000 || r.IntN(4) == 0 {
			settled, flying = flying, nil
		} else if r.IntN(2) == 0 {
			settled, flying = part(flying, r.Uint64())
		}
		if r.IntN(400) == 0 {
			die() // between publishing and the checkpoint
		}
		c, err = src.Checkpoint(settled)
		if err != nil {
			return err
		}
		tag, err := pool.Exec(ctx, "UPDATE cursor SET state = $1::jsonb, last_id = $2 WHERE epoch = $3", string(c.State), c.LastID, epoch)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			// A reader that was killed as it began may have raised the epoch after us: its
			// statement was on its way.
			die()
		}
		if r.IntN(400) == 0 {
			die()
		}
	}
}

// receive takes what there is, in batches of random sizes.
func receive(ctx context.Context, src *outbox.Source, epoch int64, received chan<- []relay.Message, failed chan<- error) {
	r := rand.New(rand.NewPCG(uint64(epoch), 1))
	for {
		msgs, err := src.Receive(ctx, 1+r.IntN(1000))
		if err != nil {
			failed <- err
			return
		}
		received <- msgs
	}
}

// die kills this process with SIGKILL: nothing is flushed.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// part takes the messages of a random half of the keys.
func part(msgs []relay.Message, salt uint64) (taken, left []relay.Message) {
	for _, m := range msgs {
		h := fnv.New64a()
		h.Write(binary.BigEndian.AppendUint64(nil, salt))
		k, _ := jsonscan.Field(m.Row, "k")
		h.Write(k)
		if h.Sum64()%2 == 0 {
			taken = append(taken, m)
		} else {
			left = append(left, m)
		}
	}
	return taken, left
}

// naive is what everyone writes first.
func naive(ctx context.Context, url string, out *bufio.Writer) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var last int64
	if err := conn.QueryRow(ctx, "SELECT last_id FROM cursor").Scan(&last); err != nil {
		return err
	}
	for ctx.Err() == nil {
		rows, err := conn.Query(ctx, "SELECT id, payload->'inserted'->0 FROM pgtrickle.outbox_ledger WHERE id > $1 ORDER BY id LIMIT 1000", last)
		if err != nil {
			return err
		}
		var row []byte
		if _, err := pgx.ForEachRow(rows, []any{&last, &row}, func() error { return publish(out, row) }); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "UPDATE cursor SET last_id = $1", last); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// publish writes one event as 16 bytes, so that a kill leaves at most one broken.
func publish(out io.Writer, row []byte) error {
	k, ok := jsonscan.Field(row, "k")
	s, ok2 := jsonscan.Field(row, "s")
	if !ok || !ok2 {
		return fmt.Errorf("row %q", row)
	}
	key, err := strconv.ParseInt(string(k), 10, 64)
	if err != nil {
		return err
	}
	seq, err := strconv.ParseInt(string(s), 10, 64)
	if err != nil {
		return err
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(key))
	binary.BigEndian.PutUint64(b[8:], uint64(seq))
	_, err = out.Write(b[:])
	return err
}
