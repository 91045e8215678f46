package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	look  = 10 * time.Millisecond // how often the end of a topic is asked for
	begin = time.Minute           // a program that has sent nothing by then does not work
	// writers is the number of sessions that write.
	writers = 8
)

// drain starts the program before a backlog, and waits for as many messages as there
// are rows. The program's start counts.
func (b *bench) drain(ctx context.Context, j *job, m measure) error {
	before, err := j.spent()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := j.start(ctx); err != nil {
		return err
	}
	var first time.Time
	got, limited := 0, false
	for ; got < m.rows && !limited; time.Sleep(look) {
		if got, err = j.end(ctx); err != nil {
			return err
		}
		if got > 0 && first.IsZero() {
			first = time.Now()
		}
		if err := j.alive(); err != nil {
			return err
		}
		limited = time.Since(began) > b.o.limit
	}
	if got == 0 {
		return fmt.Errorf("nothing arrived in %s", b.o.limit)
	}
	ended := time.Now()
	after, err := j.spent()
	if err != nil {
		return err
	}
	cost := after.since(before)
	b.results.add(m.name+": events/s, from its start", more, j, float64(got)/ended.Sub(began).Seconds())
	b.results.add(m.name+": events/s, from the first event", more, j, float64(got)/ended.Sub(first).Seconds())
	b.results.add(m.name+": program, µs of CPU an event", less, j, cost.program/float64(got)*1e6)
	b.results.add(m.name+": PostgreSQL, µs of CPU an event", less, j, cost.postgres/float64(got)*1e6)
	b.results.add(m.name+": Kafka, µs of CPU an event", less, j, cost.kafka/float64(got)*1e6)
	b.results.add(m.name+": program, MiB at its peak", less, j, j.rss)
	return j.account(ctx, m, limited)
}

// account reads the topic and records how many rows of the backlog it lacks, and how
// many messages came twice. What is missing when time was up is not lost.
func (j *job) account(ctx context.Context, m measure, limited bool) error {
	seen, total, err := j.readAll(ctx, m.rows)
	if err != nil {
		return err
	}
	if limited {
		j.b.results.add(m.name+": rows delivered when time was up", more, j, float64(seen))
	} else {
		j.b.results.add(m.name+": rows lost", less, j, float64(m.rows-seen))
	}
	j.b.results.add(m.name+": messages sent twice", less, j, float64(total-seen))
	return nil
}

// arrivals are the times at which rows were begun and arrived, by their number.
type arrivals struct {
	mu           sync.Mutex
	began, ended map[int]time.Time
}

func (a *arrivals) begin(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began[n] = time.Now()
}

func (a *arrivals) arrive(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended[n].IsZero() {
		a.ended[n] = time.Now()
	}
}

func (a *arrivals) has(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.ended[n].IsZero()
}

// wait waits for row n, and returns false when time is up.
func (a *arrivals) wait(ctx context.Context, n int, span time.Duration) bool {
	for deadline := time.Now().Add(span); !a.has(n); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// live starts the program, follows its topic, and returns once a first row has arrived.
// Programs with a poll interval poll each millisecond.
func (j *job) live(ctx context.Context) (*arrivals, error) {
	j.poll = 1
	if err := j.start(ctx); err != nil {
		return nil, err
	}
	a := &arrivals{began: make(map[int]time.Time), ended: make(map[int]time.Time)}
	if j.peer.idle {
		return a, nil
	}
	go j.follow(ctx, a.arrive)
	j.next++
	if _, err := j.pool.Exec(ctx, j.peer.statement("$1::bigint"), j.next); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(begin); !a.wait(ctx, j.next, time.Second); {
		if err := j.alive(); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the first row did not arrive in %s", begin)
		}
	}
	return a, nil
}

// write writes rows for a time, each a transaction, at a rate or as fast as the server
// accepts them if the rate is 0. It returns how many.
func (j *job) write(ctx context.Context, a *arrivals, rate int, span time.Duration) (int, error) {
	var wg sync.WaitGroup
	var number atomic.Int64
	number.Store(int64(j.next))
	errs := make([]error, writers)
	began := time.Now()
	for k := range writers {
		wg.Go(func() { errs[k] = j.writer(ctx, k, a, &number, rate, began, span) })
	}
	wg.Wait()
	n := int(number.Load()) - j.next
	j.next += n
	return n, errors.Join(errs...)
}

func (j *job) writer(ctx context.Context, k int, a *arrivals, number *atomic.Int64, rate int, began time.Time, span time.Duration) error {
	conn, err := j.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	sql := j.peer.statement("$1::bigint")
	for i := 0; time.Since(began) < span; i++ {
		if rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(i*writers+k) * time.Second / time.Duration(rate))))
		}
		n := int(number.Add(1))
		if rate > 0 {
			a.begin(n)
		}
		if _, err := conn.Exec(ctx, sql, n); err != nil {
			return err
		}
	}
	return nil
}

// steady measures 1,000 rows a second: from before the INSERT to the arrival.
func (b *bench) steady(ctx context.Context, j *job, m measure) error {
	a, err := j.live(ctx)
	if err != nil {
		return err
	}
	const rate = 1000
	if _, err := j.write(ctx, a, rate, 3*time.Second); err != nil { // sessions, statements and caches
		return err
	}
	before, err := j.spent()
	if err != nil {
		return err
	}
	from, began := j.next+1, time.Now()
	n, err := j.write(ctx, a, rate, b.o.span)
	if err != nil {
		return err
	}
	span := time.Since(began).Seconds()
	after, err := j.spent()
	if err != nil {
		return err
	}
	cost := after.since(before)
	b.results.add(m.name+": PostgreSQL with its writers, % of a core", less, j, cost.postgres/span*100)
	if j.peer.idle {
		return nil
	}
	b.results.add(m.name+": program, % of a core", less, j, cost.program/span*100)
	b.results.add(m.name+": Kafka, % of a core", less, j, cost.kafka/span*100)

	var took []time.Duration
	lost := 0
	deadline := time.Now().Add(20 * time.Second)
	for i := from; i < from+n; i++ {
		if !a.wait(ctx, i, time.Until(deadline)) {
			lost++
			continue
		}
		a.mu.Lock()
		took = append(took, a.ended[i].Sub(a.began[i]))
		a.mu.Unlock()
	}
	if err := j.alive(); err != nil {
		return err
	}
	slices.Sort(took)
	for _, q := range []struct {
		name string
		part float64
	}{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}} {
		at := took[min(len(took)-1, int(q.part*float64(len(took))))]
		b.results.add(m.name+": "+q.name+", ms", less, j, float64(at.Microseconds())/1000)
	}
	b.results.add(m.name+": program, MiB at its peak", less, j, j.rss)
	b.results.add(m.name+": rows lost", less, j, float64(lost))
	return nil
}

// flat lets writers write as fast as they can while the program runs.
func (b *bench) flat(ctx context.Context, j *job, m measure) error {
	a, err := j.live(ctx)
	if err != nil {
		return err
	}
	j.stop(syscall.SIGTERM) // it works; now with the settings of a drain, and nothing that reads its topic
	j.poll = 10
	if err := j.start(ctx); err != nil {
		return err
	}
	if _, err := j.write(ctx, a, 1000, 5*time.Second); err != nil { // sessions, statements and a JVM's start
		return err
	}
	if err := j.caughtUp(ctx); err != nil {
		return err
	}
	before, err := j.spent()
	if err != nil {
		return err
	}
	began := time.Now()
	n, err := j.write(ctx, a, 0, b.o.span)
	if err != nil {
		return err
	}
	b.results.add(m.name+": transactions/s", more, j, float64(n)/time.Since(began).Seconds())
	if j.peer.idle {
		return nil
	}
	ended := time.Now()
	got, err := j.end(ctx)
	if err != nil {
		return err
	}
	b.results.add(m.name+": rows behind at the end", less, j, float64(max(0, j.next-got)))
	if err := j.caughtUp(ctx); err != nil {
		return err
	}
	b.results.add(m.name+": caught up after, s", less, j, time.Since(ended).Seconds())
	after, err := j.spent()
	if err != nil {
		return err
	}
	cost := after.since(before)
	b.results.add(m.name+": program, µs of CPU an event", less, j, cost.program/float64(n)*1e6)
	b.results.add(m.name+": PostgreSQL with its writers, µs of CPU an event", less, j, cost.postgres/float64(n)*1e6)
	return nil
}

// caughtUp waits until the topic has as many messages as rows were written.
func (j *job) caughtUp(ctx context.Context) error {
	if j.peer.idle {
		return nil
	}
	for began := time.Now(); ; time.Sleep(look) {
		got, err := j.end(ctx)
		if err != nil || got >= j.next {
			return err
		}
		if err := j.alive(); err != nil {
			return err
		}
		if time.Since(began) > j.b.o.limit {
			return fmt.Errorf("still %d rows behind after %s", j.next-got, j.b.o.limit)
		}
	}
}

// trap has a transaction write a row first and commit it last.
func (b *bench) trap(ctx context.Context, j *job, m measure) error {
	a, err := j.live(ctx)
	if err != nil {
		return err
	}
	const times = 5
	meanwhile, late := 0, 0
	for range times {
		slow, fast := j.next+1, j.next+2
		j.next += 2
		tx, err := j.pool.BeginTx(ctx, pgx.TxOptions{})
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, j.peer.statement("$1::bigint"), slow); err != nil {
			return errors.Join(err, tx.Rollback(ctx))
		}
		if _, err := j.pool.Exec(ctx, j.peer.statement("$1::bigint"), fast); err != nil {
			return errors.Join(err, tx.Rollback(ctx))
		}
		if a.wait(ctx, fast, 2*time.Second) {
			meanwhile++
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		if a.wait(ctx, slow, 5*time.Second) {
			late++
		}
	}
	b.results.add(fmt.Sprintf("%s: the late row delivered, of %d", m.name, times), more, j, float64(late))
	b.results.add(fmt.Sprintf("%s: the row after it not held up, of %d", m.name, times), more, j, float64(meanwhile))
	return j.alive()
}

// kill kills the program in the middle of a drain and starts it again at once.
func (b *bench) kill(ctx context.Context, j *job, m measure) error {
	began := time.Now()
	if err := j.start(ctx); err != nil {
		return err
	}
	for got := 0; got < m.rows/2 && (got == 0 || time.Since(began) < b.o.limit/2); time.Sleep(look) {
		var err error
		if got, err = j.end(ctx); err != nil {
			return err
		}
		if err := j.alive(); err != nil {
			return err
		}
		if time.Since(began) > b.o.limit {
			return fmt.Errorf("nothing arrived in %s", b.o.limit)
		}
	}
	j.stop(syscall.SIGKILL)
	if err := j.start(ctx); err != nil {
		return err
	}
	// What is sent again comes before the rest, so the end is when nothing has come for
	// longer than a program takes to start.
	const silence = 15 * time.Second
	got, moved := 0, time.Now()
	limited := false
	for time.Since(moved) < silence && !limited {
		end, err := j.end(ctx)
		if err != nil {
			return err
		}
		if end > got {
			got, moved = end, time.Now()
		}
		limited = time.Since(began) > 2*b.o.limit
		if err := j.alive(); err != nil {
			return err
		}
		time.Sleep(look)
	}
	if !limited {
		b.results.add(m.name+": all there after, s", less, j, moved.Sub(began).Seconds())
	}
	return j.account(ctx, m, limited)
}
