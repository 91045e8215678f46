package kafkarelay

import (
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
)

// boundCodecs checks and limits what the client decompresses. It does so with a batch as a
// whole, and of a megabyte that a producer has sent it can make gigabytes.
var boundCodecs = sync.OnceFunc(func() {
	for i, codec := range compress.Codecs {
		if codec != nil {
			compress.Codecs[i] = bounded{codec}
		}
	}
})

const (
	minBatch  = 64 << 20 // bytes that a batch may have in any case
	maxBatch  = 1 << 30
	roomEvery = 8 << 20 // bytes between two looks at the heap
)

type bounded struct{ compress.Codec }

// NewReader implements [compress.Codec].
func (c bounded) NewReader(r io.Reader) io.ReadCloser {
	limit := min(max(debug.SetMemoryLimit(-1)/4, minBatch), maxBatch)
	b := &boundedReader{ReadCloser: c.Codec.NewReader(r), from: r, left: limit, limit: limit, check: &recordCheck{}}
	if _, old := r.(protocol.Bytes); old { // the value of a message of version 0 or 1
		b.check = &messageCheck{}
	}
	return b
}

type boundedReader struct {
	io.ReadCloser
	from        io.Reader // what is decompressed
	left, limit int64
	check       interface {
		feed(p []byte) error
		end() error
	}
}

func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	before := r.left
	r.left -= int64(n)
	switch {
	case r.left < 0:
		return 0, fmt.Errorf("a batch is larger than %d bytes once decompressed: raise the memory limit, or skip its offsets", r.limit)
	case before/roomEvery != r.left/roomEvery && !room():
		return 0, errors.New("the memory does not allow another batch to be decompressed: raise its limit, or lower kafka_fetch_max_bytes")
	}
	if wrong := r.check.feed(p[:n]); wrong != nil {
		return 0, fmt.Errorf("a compressed batch cannot be decoded: %w", wrong)
	}
	if errors.Is(err, io.EOF) {
		if wrong := r.check.end(); wrong != nil {
			return 0, fmt.Errorf("a compressed batch cannot be decoded: %w", wrong)
		}
		// The client would take what is behind the compressed bytes for the next batch.
		if _, rest := io.Copy(io.Discard, r.from); rest != nil {
			return 0, rest
		}
	}
	return n, err
}

// room reports whether the heap is below three quarters of the memory limit, without what
// can be collected. Many batches can be in one response, each within its own limit.
func room() bool {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return true
	}
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for _, collect := range []func(){func() {}, runtime.GC} {
		collect()
		if metrics.Read(heap); heap[0].Value.Uint64() < uint64(limit)/4*3 {
			return true
		}
	}
	return false
}
