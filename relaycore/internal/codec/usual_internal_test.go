package codec

import (
	"reflect"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// TestUsualForms compares the short way through events of the usual form with the general
// one. An event for which they differ must be left to the general one.
func TestUsualForms(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		short, general func(*relay.Message) error
		bodies         []string
	}{
		"cloudevents": {unwrapCloudEvent, anyCloudEvent, []string{
			`{"id":"1","source":"/s","type":"t","data":{"a":1}}`,
			`{"specversion":"1.0","id":"a\"1","source":"/s","type":"t","data":null,"time":"2026-11-22T10:00:00.5+02:00","partitionkey":"k","pgtrickleop":"delete"}`,
			`{"id":"1","source":"/s","type":"t","data":[1],"time":"yesterday"}`, `{"id":"1","source":"/s","type":"t","data":1,"time":null}`,
			`{"id":1,"source":"/s","type":"t","data":{}}`, `{"id":"","source":"/s","type":"t","data":{}}`, `{"id":"1","source":"/s","type":"t"}`,
			`{"id":"1","source":"/s","type":"t","data_base64":"AA=="}`, `{"id":"1","source":"/s","type":"t","data":1,"data_base64":"AA=="}`,
			`{"id":"1","source":"/s","type":"t","data":1,"partitionkey":7}`, `{"id":"1","source":"/s","type":"t","data":1,"partitionkey":""}`,
			`{"id":"1","id":"2","source":"/s","type":"t","data":1,"data":2}`, `[1]`, `{`, `7`, ``,
		}},
		"debezium": {unwrapDebezium, anyDebezium, []string{
			`{"op":"c","before":null,"after":{"a":1},"ts_ms":5,"source":{"id":"x","table":"t"}}`,
			`{"op":"u","before":null,"after":{"a":1},"ts_ms":0,"source":{}}`, `{"op":"u","after":{"a":1},"ts_ms":1,"source":{"id":""}}`,
			`{"op":"u","before":{"a":0},"after":{"a":1},"ts_ms":1,"source":{"id":"m"}}`,
			`{"op":"d","before":{"a":1},"after":null,"ts_ms":9,"source":{"table":"t"}}`, `{"op":"r","after":{"a":1},"ts_ms":9,"source":{"id":"x"}}`,
			`{"schema":{},"payload":{"op":"c","after":{"a":1},"ts_ms":5,"source":{"id":"x"}},"op":"d"}`,
			`{"payload":null,"op":"c","after":{"a":1},"ts_ms":5,"source":{"id":"x"}}`, `{"payload":7}`, `{"op":"t"}`, `{"op":"c"}`,
			`{"op":"c","after":{"a":1}}`, `{"op":"c","after":{"a":1},"ts_ms":1.5,"source":{}}`, `{"op":"c","after":{"a":1},"ts_ms":1,"source":{"id":7}}`,
			`{"op":"c","after":{"a":1},"ts_ms":1,"source":[]}`, `{"op":"c","after":{"a":1},"ts_ms":1,"source":{"table":7}}`, `[1]`, `{`, ``,
		}},
	} {
		for _, body := range tc.bodies {
			short := relay.Message{ID: "m", Key: "old", Op: "was", Body: []byte(body)}
			general := short
			if a, b := tc.short(&short), tc.general(&general); (a == nil) != (b == nil) {
				t.Errorf("%s %s: %v, the general way %v", name, body, a, b)
				continue
			} else if a != nil {
				continue
			}
			if !short.Time.Equal(general.Time) {
				t.Errorf("%s %s: time %v, the general way %v", name, body, short.Time, general.Time)
			}
			short.Time = general.Time
			if !reflect.DeepEqual(short, general) {
				t.Errorf("%s %s:\n%+v, the general way\n%+v", name, body, short, general)
			}
		}
	}
}
