package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5" //nolint:gosec // what the row's sku is made of
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// station is a point on the way of a row.
type station struct {
	Name   string  `json:"name"`
	Fast   float64 `json:"fast_ms"`   // since the INSERT was sent, of a row among the fastest tenth
	Median float64 `json:"median_ms"` // of the row of median time
}

// tracedRows is the number of rows of which one is shown, 1,000 a second.
const tracedRows = 1000

// trace sends rows through a relay whose connections to PostgreSQL and to NATS pass two
// proxies that record the time of everything. It returns the ways of two rows. Each proxy
// adds some 0.05 ms in each direction.
func (b *bench) trace(ctx context.Context) (list []station, err error) {
	nc, js, stream, err := natsStream(b)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer func() { _ = js.DeleteStream(stream) }()
	arrived := make(map[string]time.Time) // by sku
	var mu sync.Mutex
	_, err = nc.Subscribe(stream+".>", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		for _, sku := range skus(m.Data) {
			arrived[sku] = time.Now()
		}
	})
	if err != nil {
		return nil, err
	}
	postgres, postgresURL, err := tapURL(b.url)
	if err != nil {
		return nil, err
	}
	defer postgres.Close()
	broker, brokerURL, err := tapURL(nc.ConnectedUrl())
	if err != nil {
		return nil, err
	}
	defer broker.Close()

	path, err := binary()
	if err != nil {
		return nil, err
	}
	name := b.name()
	p, err := b.startQuiet(ctx, path, name, postgresURL, brokerURL, stream)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	rows, err := b.writeTraced(ctx)
	if err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // the last checkpoint
	mu.Lock()
	defer mu.Unlock()
	for i := range rows {
		rows[i].follow(postgres.all(), broker.all(), arrived, name)
	}
	rows = slices.DeleteFunc(rows, func(r tracedRow) bool { return slices.Contains(r.at[:], time.Time{}) })
	if len(rows) < tracedRows/10 {
		return nil, fmt.Errorf("%d of %d rows could be followed\n%s", len(rows), tracedRows, p.log.String())
	}
	slices.SortFunc(rows, func(x, y tracedRow) int { return cmp.Compare(x.total(), y.total()) })
	fast, middle := rows[len(rows)/10], rows[len(rows)/2]
	for i, name := range stationNames {
		list = append(list, station{name, fast.ms(i), middle.ms(i)})
	}
	return list, nil
}

// The stations of a row, in the order of its way.
const (
	inserted = iota
	committed
	notified
	asked
	read
	published
	received
	confirmed
	checkpointed
	stations
)

var stationNames = [stations]string{
	inserted:     "the writer sends INSERT and pg_notify",
	committed:    "the writer has the commit",
	notified:     "the relay gets the notification",
	asked:        "the relay sends its read",
	read:         "the relay gets the row",
	published:    "the relay publishes the message",
	received:     "a consumer has the message",
	confirmed:    "the relay gets the stream's confirmation",
	checkpointed: "the relay sends a checkpoint after it",
}

type tracedRow struct {
	sku string
	at  [stations]time.Time
}

func (r *tracedRow) total() time.Duration { return r.at[received].Sub(r.at[inserted]) }

func (r *tracedRow) ms(station int) float64 {
	return float64(r.at[station].Sub(r.at[inserted]).Microseconds()) / 1000
}

// writeTraced writes the rows. The first half is not traced: connections and caches are
// cold.
func (b *bench) writeTraced(ctx context.Context) (rows []tracedRow, err error) {
	c, err := b.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Release()
	sql := insertQuiet(true)
	began := time.Now()
	for n := range 2 * tracedRows {
		time.Sleep(time.Until(began.Add(time.Duration(n) * time.Millisecond)))
		sum := md5.Sum([]byte(strconv.Itoa(n))) //nolint:gosec // what the row's sku is made of
		r := tracedRow{sku: hex.EncodeToString(sum[:])}
		r.at[inserted] = time.Now()
		if _, err := c.Exec(ctx, sql, n); err != nil {
			return nil, err
		}
		r.at[committed] = time.Now()
		if n >= tracedRows {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// follow finds the row's stations in what passed the proxies. A station that cannot be
// found stays zero, such as the notification of a row that a read by time has found.
func (r *tracedRow) follow(postgres, broker []passed, arrived map[string]time.Time, pipeline string) {
	has := func(p passed) bool { return slices.Contains(p.skus, r.sku) }
	got := slices.IndexFunc(postgres, func(p passed) bool { return !p.up && has(p) })
	sent := slices.IndexFunc(broker, func(p passed) bool { return p.up && has(p) })
	if got < 0 || sent < 0 {
		return
	}
	r.at[read], r.at[published], r.at[received] = postgres[got].at, broker[sent].at, arrived[r.sku]
	for i := got - 1; i >= 0 && r.at[asked].IsZero(); i-- {
		if p := postgres[i]; p.up && p.conn == postgres[got].conn {
			r.at[asked] = p.at
		}
	}
	for _, p := range postgres[:got] { // the last one before the read
		if !p.up && p.notifies && p.at.After(r.at[inserted]) && p.at.Before(r.at[asked]) {
			r.at[notified] = p.at
		}
	}
	for _, p := range broker[sent:] {
		if !p.up && p.conn == broker[sent].conn {
			r.at[confirmed] = p.at
			break
		}
	}
	for _, p := range postgres[got:] {
		if p.up && p.at.After(r.at[confirmed]) && bytes.Contains(p.checkpoint, []byte(pipeline)) {
			r.at[checkpointed] = p.at
			break
		}
	}
}

// passed is what a proxy passed on at once.
type passed struct {
	conn       int
	up         bool // to the server
	at         time.Time
	skus       []string
	notifies   bool
	checkpoint []byte // the bytes, if they are a checkpoint's
}

// tap is a proxy that records what passes it.
type tap struct {
	net.Listener
	to     string
	mu     sync.Mutex
	passed []passed
}

// tapURL starts a tap in front of the server of a URL, and returns the URL of the tap.
func tapURL(server string) (*tap, string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	t := &tap{Listener: l, to: u.Host}
	go t.serve()
	u.Host = l.Addr().String()
	return t, u.String(), nil
}

// serve ends with the listener.
func (t *tap) serve() {
	for n := 0; ; n++ {
		client, err := t.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", t.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		go t.pass(n, true, client, server)
		go t.pass(n, false, server, client)
	}
}

func (t *tap) pass(conn int, up bool, from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			at := time.Now()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			t.record(conn, up, at, buf[:n])
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				_ = from.Close()
			}
			return
		}
	}
}

func (t *tap) record(conn int, up bool, at time.Time, data []byte) {
	p := passed{conn: conn, up: up, at: at, skus: skus(data), notifies: bytes.Contains(data, []byte("pgtrickle_outbox_new"))}
	if bytes.Contains(data, []byte(`"mode":`)) {
		p.checkpoint = bytes.Clone(data)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.passed = append(t.passed, p)
}

// all returns what has passed, in order.
func (t *tap) all() []passed {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortStableFunc(t.passed, func(x, y passed) int { return x.at.Compare(y.at) })
	return t.passed
}

// skus returns the skus in a text with events.
func skus(data []byte) (list []string) {
	const before, length = `"sku":"`, 2 * md5.Size
	for {
		i := bytes.Index(data, []byte(before))
		if i < 0 || len(data) < i+len(before)+length {
			return list
		}
		data = data[i+len(before):]
		list = append(list, string(data[:length]))
	}
}

func traceTable(list []station) string {
	var b strings.Builder
	b.WriteString("\nThe ways of two of the rows into NATS, at 1,000 rows a second: one among the fastest tenth, and the one of\n" +
		"median time. Milliseconds since the INSERT was sent:\n\n| station | fast | median |\n|---|---|---|\n")
	for _, s := range list {
		fmt.Fprintf(&b, "| %s | %.2f | %.2f |\n", s.Name, s.Fast, s.Median)
	}
	return b.String()
}
