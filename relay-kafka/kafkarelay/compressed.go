package kafkarelay

import (
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/segmentio/kafka-go/compress"
)

// boundCodecs limits what the client decompresses. It does so with a batch as a whole, and
// of a megabyte that a producer has sent it can make gigabytes.
var boundCodecs = sync.OnceFunc(func() {
	for i, codec := range compress.Codecs {
		if codec != nil {
			compress.Codecs[i] = bounded{codec}
		}
	}
})

const (
	minBatch = 64 << 20 // bytes that a batch may have in any case
	maxBatch = 1 << 30
)

type bounded struct{ compress.Codec }

// NewReader implements [compress.Codec].
func (c bounded) NewReader(r io.Reader) io.ReadCloser {
	limit := min(max(debug.SetMemoryLimit(-1)/4, minBatch), maxBatch)
	return &boundedReader{ReadCloser: c.Codec.NewReader(r), left: limit, limit: limit}
}

type boundedReader struct {
	io.ReadCloser
	left, limit int64
}

func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, fmt.Errorf("a batch is larger than %d bytes once decompressed: raise the memory limit, or skip its offsets", r.limit)
	}
	return n, err
}
