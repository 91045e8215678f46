package kafkarelay

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
)

// TestDecompressionIsBounded: the memory of a small batch that a producer has compressed
// has a limit.
func TestDecompressionIsBounded(t *testing.T) {
	boundCodecs()
	before := debug.SetMemoryLimit(256 << 20)
	defer debug.SetMemoryLimit(before)
	for name, codec := range map[string]protocol.Attributes{
		"gzip": protocol.Gzip, "snappy": protocol.Snappy, "lz4": protocol.Lz4, "zstd": protocol.Zstd,
	} {
		for _, version := range []int8{1, 2} {
			batch := func(size int) []byte {
				var buf bytes.Buffer
				set := protocol.RecordSet{Version: version, Attributes: codec, Records: protocol.NewRecordReader(
					protocol.Record{Value: protocol.NewBytes(make([]byte, size))})}
				if _, err := set.WriteTo(&buf); err != nil {
					t.Fatal(err)
				}
				return buf.Bytes()
			}
			decode := func(raw []byte) (took uint64, err error) {
				var start, end runtime.MemStats
				runtime.ReadMemStats(&start)
				var set protocol.RecordSet
				_, err = set.ReadFrom(bytes.NewReader(raw))
				if err == nil && version == 1 { // which is decompressed as it is read
					_, err = set.Records.ReadRecord()
				}
				runtime.ReadMemStats(&end)
				return end.TotalAlloc - start.TotalAlloc, err
			}
			if _, err := decode(batch(32 << 20)); err != nil {
				t.Errorf("%s, version %d: 32 MiB = %v", name, version, err)
			}
			bomb := batch(300 << 20)
			took, err := decode(bomb)
			named := version == 1 || err != nil && strings.Contains(err.Error(), "raise the memory limit") // version 1 hides it
			if err == nil || !named || took > 160<<20 {
				t.Errorf("%s, version %d: %d bytes took %d MiB: %v; want an error, and 160 MiB", name, version, len(bomb), took>>20, err)
			}
		}
	}
}
