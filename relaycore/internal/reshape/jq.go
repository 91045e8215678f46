package reshape

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/itchyny/gojq"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// JQConfig are the keys of a pipeline with jq expressions. The zero value changes nothing.
type JQConfig struct {
	Filter       string `json:"filter" doc:"A jq expression on {row, before, op, stream_table, headers, key, outbox_id}; false, null or no value drops the message."`
	Transform    string `json:"transform" doc:"A jq expression on the same object, whose value travels in place of the row; keys come out sorted."`
	Unrestricted bool   `json:"jq_unrestricted" doc:"Permit all of jq in filter and transform. Such an expression can take much memory: for trusted authors only."`
}

// Validate reports an expression that does not compile, with the position.
func (c *JQConfig) Validate() error {
	_, err := NewJQ(*c)
	return err
}

// JQ is a compiled [JQConfig]. It is used by one goroutine at a time.
type JQ struct {
	filter, transform *expression
}

// NewJQ compiles c, and returns nil if c has no expression.
func NewJQ(c JQConfig) (_ *JQ, err error) {
	if c.Filter == "" && c.Transform == "" {
		return nil, nil
	}
	j := new(JQ)
	if j.filter, err = compile("filter", c.Filter, c.Unrestricted); err != nil {
		return nil, err
	}
	j.transform, err = compile("transform", c.Transform, c.Unrestricted)
	return j, err
}

// Class is the class of dead letters whose filter or transform failed.
const Class = "transform"

// Error is why an expression has no value for a message.
type Error struct {
	Key    string // filter or transform
	Reason error
}

func (e *Error) Error() string { return e.Key + ": " + e.Reason.Error() }

func (e *Error) Unwrap() error { return e.Reason }

// Class is that of the dead letter.
func (e *Error) Class() string { return Class }

// Apply evaluates the expressions for m, whose row, key and headers are known. It sets
// Payload, or Err: [relay.ErrFiltered] if the filter drops m.
func (j *JQ) Apply(m *relay.Message) {
	input, err := inputOf(m)
	if err != nil {
		m.Err = relay.Permanent(&Error{"filter", err})
		return
	}
	size := len(m.Row) + len(m.Before)
	if j.filter != nil {
		keep, found, err := j.filter.value(input, size)
		switch {
		case err != nil:
			m.Err = relay.Permanent(&Error{"filter", err})
			return
		case !found, keep == nil, keep == false:
			m.Err = relay.ErrFiltered
			return
		}
	}
	if j.transform == nil || m.Err != nil {
		return
	}
	value, found, err := j.transform.value(input, size)
	if err == nil && !found {
		err = errors.New("gives no value; drop messages by filter")
	}
	if err == nil {
		m.Payload.JSON, err = encode(value, size)
	}
	if err != nil {
		m.Payload.JSON, m.Err = nil, relay.Permanent(&Error{"transform", err})
	}
}

func inputOf(m *relay.Message) (map[string]any, error) {
	row, err := decode(m.Row)
	if err != nil {
		return nil, err
	}
	before, err := decode(m.Before)
	if err != nil {
		return nil, err
	}
	headers := make(map[string]any, len(m.Headers))
	for _, h := range m.Headers {
		headers[h.Name] = h.Value
	}
	return map[string]any{
		"row": row, "before": before, "op": m.Op, "stream_table": m.StreamTable,
		"headers": headers, "key": m.Key, "outbox_id": int(m.OutboxID),
	}, nil
}

// decode keeps numbers as they are written.
func decode(text []byte) (v any, err error) {
	if text == nil {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

// outputBytes bounds the payload made of a row of size bytes.
func outputBytes(size int) int { return 64<<10 + 4*size }

func encode(value any, size int) ([]byte, error) {
	bound := outputBytes(size)
	if measure(value, bound, 0) > bound {
		return nil, fmt.Errorf("the value is larger than %d bytes, or too deep", bound)
	}
	out, err := gojq.Marshal(value)
	if err == nil && len(out) > bound {
		err = fmt.Errorf("the value has %d bytes; at most %d", len(out), bound)
	}
	return out, err
}

// expression is one compiled expression.
type expression struct {
	code *gojq.Code
	// left is how many bytes of values the evaluation may still build.
	left, size int
}

// maxExpression bounds the text of an expression, in bytes.
const maxExpression = 16 << 10

func compile(key, text string, unrestricted bool) (*expression, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxExpression {
		return nil, relaycfg.Errorf(key, "has %d bytes; at most %d", len(text), maxExpression)
	}
	query, err := gojq.Parse(text)
	if err != nil {
		at := ""
		if p, ok := errors.AsType[*gojq.ParseError](err); ok {
			at = fmt.Sprintf(" at character %d", position(text, p.Offset-len(p.Token)))
		}
		return nil, relaycfg.Errorf(key, "is not a jq expression: %s%s", err, at)
	}
	e := new(expression)
	if !unrestricted {
		r := restricter{text: text}
		r.query(query)
		if r.err != nil {
			return nil, relaycfg.Errorf(key, "%s", r.err)
		}
	}
	e.code, err = gojq.Compile(query, e.functions()...)
	if err != nil {
		name, _, _ := strings.Cut(err.Error()[strings.LastIndex(err.Error(), ": ")+1:], "/")
		return nil, relaycfg.Errorf(key, "is not a jq expression: %s%s", err, placeOf(text, strings.TrimSpace(name)))
	}
	return e, nil
}

// placeOf returns where word stands in text, as part of an error; "" if it does not.
func placeOf(text, word string) string {
	if i := strings.Index(text, word); i >= 0 && word != "" {
		return fmt.Sprintf(" at character %d", position(text, i))
	}
	return ""
}

// position is that of the character at byte i; the first is 1.
func position(text string, i int) int {
	return utf8.RuneCountInString(text[:min(max(i, 0), len(text))]) + 1
}

// value evaluates the expression. found is false if it gives no value.
func (e *expression) value(input any, size int) (v any, found bool, err error) {
	e.size, e.left = size, 8<<20+16*size
	t := newTurn()
	defer t.end()
	defer func() {
		if p := recover(); p != nil { // a defect of the interpreter concerns one message, not the process
			err = fmt.Errorf("the interpreter failed: %v", p)
		}
	}()
	values := e.code.RunWithContext(t, input)
	if v, found = values.Next(); !found {
		return nil, false, nil
	}
	if err, failed := v.(error); failed {
		return nil, false, err
	}
	switch second, more := values.Next(); err := second.(type) {
	case error:
		return nil, false, err
	default:
		if more {
			return nil, false, errors.New("gives more than one value; put it in [ ], or use any, all or first")
		}
	}
	return v, true, nil
}

// maxEvaluation is how long an expression may run for one message.
const maxEvaluation = 100 * time.Millisecond

var errTooLong = fmt.Errorf("runs longer than %s for a message", maxEvaluation)
