package kafkarelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/heartbeat"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/joingroup"
	"github.com/segmentio/kafka-go/protocol/leavegroup"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/offsetcommit"
	"github.com/segmentio/kafka-go/protocol/offsetfetch"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/protocol/syncgroup"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Bounds of what a broker may answer.
const (
	maxResponse = 16 << 20  // of all but a fetch
	maxFetch    = 128 << 20 // of a fetch; a source asks for less
	fillStep    = 256 << 10 // memory is taken for what has arrived, and so much more
)

// guard is a connection to a broker. kafka-go allocates by a length in a response, and
// indexes with it, in goroutines of its own. So a peer that is no broker would end the
// process. Nothing passes that kafka-go could not decode. A response must have a
// plausible size, be the answer to the oldest request, and hold what its lengths and
// counts promise.
type guard struct {
	net.Conn
	memory int64 // bytes that a fetch may return; 0: only maxFetch bounds them

	mu   sync.Mutex // guards sent and raw, which the writer and the reader use
	sent []request  // requests without a response, oldest first
	raw  bool       // frames of SASL without headers follow

	// The writer's own.
	head []byte // of the request that is being written
	skip int    // bytes of its rest

	// The reader's own.
	in  []byte // of the response that is being received
	out []byte // checked, and not yet read
	err error  // of a response that was refused
}

// request is what the guard keeps of a request. Of a SASL frame without a header it
// keeps nothing.
type request struct {
	key         protocol.ApiKey
	version     int16
	correlation uint32
	raw         bool
}

// newGuard takes [relay.Env.MaxAnswer] for memory.
func newGuard(conn net.Conn, memory int64) net.Conn { return &guard{Conn: conn, memory: memory} }

const requestHeader = 12 // size, API key, version, correlation id

// Write notes each request that passes.
func (g *guard) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if g.skip > 0 {
			n := min(g.skip, len(rest))
			g.skip -= n
			rest = rest[n:]
			continue
		}
		n := min(requestHeader-len(g.head), len(rest))
		g.head = append(g.head, rest[:n]...)
		rest = rest[n:]
		if len(g.head) >= 4 {
			g.note(int(binary.BigEndian.Uint32(g.head)))
		}
	}
	return g.Conn.Write(p)
}

// note takes the request whose header is complete, or that is shorter than a header.
func (g *guard) note(size int) {
	if len(g.head) < requestHeader && len(g.head) < 4+size {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := request{raw: true}
	if size >= requestHeader-4 {
		r = request{
			key: protocol.ApiKey(binary.BigEndian.Uint16(g.head[4:])), version: int16(binary.BigEndian.Uint16(g.head[6:])),
			correlation: binary.BigEndian.Uint32(g.head[8:]),
		}
		// The first bytes of a SASL frame are text. No API key and version look so.
		r.raw = g.raw && (r.key > 0xff || r.version < 0 || r.version > 0xff)
	}
	g.raw = g.raw && r.raw || r.key == protocol.SaslHandshake && r.version == 0 && !r.raw
	g.sent = append(g.sent, r)
	g.skip = 4 + size - len(g.head)
	g.head = g.head[:0]
}

// Read returns bytes of responses that were checked.
func (g *guard) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if len(g.out) == 0 {
		if err := g.receive(); err != nil {
			if relaynet.Refused(err) {
				g.err = err
				_ = g.Conn.Close()
			}
			return 0, err
		}
	}
	n := copy(p, g.out)
	g.out = g.out[n:]
	return n, nil
}

// receive reads and checks the next response. If the connection's deadline passes, the
// next call goes on where it ended.
func (g *guard) receive() error {
	if err := g.fill(4); err != nil {
		return err
	}
	size := int(int32(binary.BigEndian.Uint32(g.in)))
	g.mu.Lock()
	known := len(g.sent) > 0
	var r request
	if known {
		r = g.sent[0]
	}
	g.mu.Unlock()

	limit, header := maxResponse, 4
	if r.key == protocol.Fetch && !r.raw {
		limit = maxFetch
	}
	if r.raw {
		header = 0
	}
	if !known || size < header || size > limit {
		return peer.Wrong(g.in)
	}
	if err := g.fill(4 + header); err != nil {
		return err
	}
	if !r.raw && binary.BigEndian.Uint32(g.in[4:]) != r.correlation {
		return peer.Wrong(g.in)
	}

	if limit == maxFetch {
		if err := peer.Bound("fetch", int64(size), maxFetch, g.memory); err != nil {
			return err
		}
	}
	if err := g.fill(4 + size); err != nil {
		return err
	}
	if !r.raw {
		if err := checkResponse(r, g.in[8:]); err != nil {
			return peer.Errorf("its answer to a %s request cannot be decoded: %s", r.key, err)
		}
	}
	g.out, g.in = g.in, nil
	g.mu.Lock()
	g.sent = slices.Delete(g.sent, 0, 1)
	g.mu.Unlock()
	return nil
}

// fill reads until g.in has n bytes.
func (g *guard) fill(n int) error {
	for len(g.in) < n {
		have := len(g.in)
		step := min(n-have, max(fillStep, have))
		g.in = slices.Grow(g.in, step)[:have+step]
		read, err := io.ReadFull(g.Conn, g.in[have:])
		g.in = g.in[:have+read]
		if errors.Is(err, io.ErrUnexpectedEOF) && have == 0 {
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var peer = relaynet.Peer{Key: "kafka_brokers", Name: "Kafka broker", TLS: "kafka_tls"}

// responses are the responses that are decoded. Their fields have tags in which
// kafka-go keeps the protocol.
var responses = map[protocol.ApiKey]reflect.Type{
	protocol.ApiVersions: reflect.TypeFor[apiversions.Response](), protocol.Metadata: reflect.TypeFor[metadata.Response](),
	protocol.Produce: reflect.TypeFor[produce.Response](), protocol.Fetch: reflect.TypeFor[fetch.Response](),
	protocol.ListOffsets: reflect.TypeFor[listoffsets.Response](), protocol.FindCoordinator: reflect.TypeFor[findcoordinator.Response](),
	protocol.JoinGroup: reflect.TypeFor[joingroup.Response](), protocol.SyncGroup: reflect.TypeFor[syncgroup.Response](),
	protocol.Heartbeat: reflect.TypeFor[heartbeat.Response](), protocol.LeaveGroup: reflect.TypeFor[leavegroup.Response](),
	protocol.OffsetCommit: reflect.TypeFor[offsetcommit.Response](), protocol.OffsetFetch: reflect.TypeFor[offsetfetch.Response](),
	protocol.CreateTopics: reflect.TypeFor[createtopics.Response](), protocol.SaslHandshake: reflect.TypeFor[saslhandshake.Response](),
	protocol.SaslAuthenticate: reflect.TypeFor[saslauthenticate.Response](),
	protocol.InitProducerId:   reflect.TypeFor[initproducerid.Response](),
	protocol.DescribeConfigs:  reflect.TypeFor[describeconfigs.Response](),
}

// checkResponse walks through a response as kafka-go would decode it. body is what follows
// the correlation id.
func checkResponse(r request, body []byte) error {
	typ, ok := responses[r.key]
	if !ok {
		return fmt.Errorf("no such request is sent")
	}
	w := walker{body: body, version: r.version}
	w.flexible = flexible(typ, r.version)
	if w.flexible {
		w.tags()
	}
	w.value(typ, "")
	return w.err
}

// walker goes through a response. After an error it does nothing.
type walker struct {
	body     []byte // what the response still has
	version  int16
	flexible bool
	records  int // that the compressed batches state
	err      error
}

func (w *walker) take(n int) []byte {
	switch {
	case w.err != nil:
	case n < 0 || n > len(w.body):
		w.err = fmt.Errorf("a length of %d where %d bytes are left", n, len(w.body))
	default:
		b := w.body[:n]
		w.body = w.body[n:]
		return b
	}
	return nil
}

func (w *walker) int(size int) (n int) {
	b := w.take(size)
	if len(b) == 0 {
		return 0
	}
	switch size {
	case 2:
		return int(int16(binary.BigEndian.Uint16(b)))
	case 4:
		return int(int32(binary.BigEndian.Uint32(b)))
	}
	return 0
}

func (w *walker) uvarint() int {
	x, n := binary.Uvarint(w.body[:min(len(w.body), binary.MaxVarintLen32)])
	if n <= 0 {
		w.take(len(w.body) + 1)
		return 0
	}
	w.take(n)
	return int(x)
}

// tags skips the tagged fields of a flexible message.
func (w *walker) tags() {
	for n := w.count(w.uvarint(), 2); n > 0 && w.err == nil; n-- {
		w.uvarint()
		w.take(w.uvarint())
	}
}

// count returns n if so many elements of at least size bytes can follow.
func (w *walker) count(n, size int) int {
	if w.err == nil && (n < 0 || n > len(w.body)/max(size, 1)) {
		w.err = fmt.Errorf("a count of %d where %d bytes are left", n, len(w.body))
	}
	return n
}

// length reads the length of a string (2 bytes) or of bytes and lists (4), or its
// compact form, which is one larger. -1 is null.
func (w *walker) length(size int, compact bool) int {
	if compact {
		return w.uvarint() - 1
	}
	return w.int(size)
}

func (w *walker) value(typ reflect.Type, tag string) {
	compact := w.flexible || strings.Contains(tag, "compact")
	switch typ.Kind() {
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Float64:
		w.take(int(typ.Size()))
	case reflect.String:
		w.take(max(w.length(2, compact), 0))
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			w.take(max(w.length(4, compact), 0))
			return
		}
		n := w.count(max(w.length(4, compact), 0), minSize(typ.Elem(), w.version))
		for ; n > 0 && w.err == nil; n-- {
			w.value(typ.Elem(), tag)
		}
	case reflect.Struct:
		w.fields(typ)
	default:
		w.err = fmt.Errorf("a field of type %s is not known", typ)
	}
}

func (w *walker) fields(typ reflect.Type) {
	if typ == reflect.TypeFor[protocol.RecordSet]() {
		w.recordSet()
		return
	}
	for f := range typ.Fields() {
		if tag, ok := tagOf(f, w.version); ok && f.Name != "_" {
			w.value(f.Type, tag)
		}
	}
	if w.flexible {
		w.tags()
	}
}

// minSize returns the least number of bytes that a value has.
func minSize(typ reflect.Type, version int16) (n int) {
	switch typ.Kind() {
	case reflect.Int16, reflect.Int32, reflect.Int64, reflect.Float64:
		return int(typ.Size())
	case reflect.Struct:
		for f := range typ.Fields() {
			if _, ok := tagOf(f, version); ok && f.Name != "_" {
				n += minSize(f.Type, version)
			}
		}
		return n
	default:
		return 1 // a string or a list can be a single byte
	}
}

// tagOf returns the part of a field's tag for a version, such as
// "min=v0,max=v5" of "min=v0,max=v5|min=v6,max=v7,compact".
func tagOf(f reflect.StructField, version int16) (string, bool) {
	for part := range strings.SplitSeq(f.Tag.Get("kafka"), "|") {
		lowest, highest := -1, -1
		for word := range strings.SplitSeq(part, ",") {
			if v, ok := strings.CutPrefix(word, "min=v"); ok {
				lowest, _ = strconv.Atoi(v)
			} else if v, ok := strings.CutPrefix(word, "max=v"); ok {
				highest, _ = strconv.Atoi(v)
			}
		}
		if lowest >= 0 && int(version) >= lowest && int(version) <= highest {
			return part, true
		}
	}
	return "", false
}

// flexible reports whether a version of a message has tagged fields.
func flexible(typ reflect.Type, version int16) bool {
	f, ok := typ.FieldByName("_")
	if !ok {
		return false
	}
	_, ok = tagOf(f, version)
	return ok
}
