package reshape

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Masks of a column.
const (
	MaskNull  = "null"  // null in its place
	MaskHash  = "hash"  // HMAC-SHA256 of the value's text
	MaskLast4 = "last4" // the last four characters of a text that has eight or more
)

// minSalt is the shortest salt, in bytes. A short one can be found by trying.
const minSalt = 16

// ColumnsConfig is the key "columns" of a pipeline. The zero value changes nothing.
type ColumnsConfig struct {
	Include relaycfg.List     `json:"include" doc:"The columns to send, and no others."`
	Exclude relaycfg.List     `json:"exclude" doc:"Columns not to send."`
	Mask    map[string]string `json:"mask" doc:"A mask for each of these columns: null, hash or last4."`
	Salt    relaycfg.Secret   `json:"salt" doc:"Secret of at least 16 bytes, for the mask hash."`
}

// UnmarshalJSON refuses keys that do not exist and values that contradict each other.
func (c *ColumnsConfig) UnmarshalJSON(raw []byte) error {
	type plain ColumnsConfig
	*c = ColumnsConfig{}
	if err := relaycfg.Decode(raw, (*plain)(c)); err != nil {
		return err
	}
	if len(c.Include) > 0 && len(c.Exclude) > 0 {
		return relaycfg.Errorf("exclude", `cannot be combined with "include"; keep one of them`)
	}
	for column, mask := range c.Mask {
		switch {
		case mask != MaskNull && mask != MaskHash && mask != MaskLast4:
			return relaycfg.Errorf("mask."+column, "unknown mask %q; must be one of null, hash, last4", mask)
		case slices.Contains(c.Exclude, column), len(c.Include) > 0 && !slices.Contains(c.Include, column):
			return relaycfg.Errorf("mask."+column, "the column is not sent; leave its mask out")
		case mask == MaskHash && len(c.Salt) < minSalt:
			return relaycfg.Errorf("salt", "mask hash needs a secret of at least %d bytes", minSalt)
		}
	}
	return nil
}

// Sends reports whether the column is in what the pipeline sends, masked or not.
func (c *ColumnsConfig) Sends(column string) bool {
	return !slices.Contains(c.Exclude, column) && (len(c.Include) == 0 || slices.Contains(c.Include, column))
}

// Columns is a compiled [ColumnsConfig]. It is used by one goroutine at a time.
type Columns struct {
	rules map[string]rule
	rest  rule   // of the columns without a rule
	drop  string // columns whose names begin so are left out; "" leaves none out

	mac     hash.Hash
	members []jsonscan.Member
	name    []byte
	text    []byte
	hidden  []hidden
}

// rule is a mask, or one of the next two.
type rule string

const (
	ruleKeep rule = ""
	ruleDrop rule = "drop"
)

// hidden is a value of the message in hand that no receiver may see.
type hidden struct{ text, mask string }

// NewColumns compiles c, and returns nil if c changes nothing.
func NewColumns(c ColumnsConfig) *Columns {
	if len(c.Include) == 0 && len(c.Exclude) == 0 && len(c.Mask) == 0 {
		return nil
	}
	out := &Columns{rules: make(map[string]rule), mac: hmac.New(sha256.New, []byte(c.Salt.Reveal()))}
	if len(c.Include) > 0 {
		out.rest = ruleDrop
	}
	for _, column := range c.Include {
		out.rules[column] = ruleKeep
	}
	for _, column := range c.Exclude {
		out.rules[column] = ruleDrop
	}
	for column, mask := range c.Mask {
		out.rules[column] = rule(mask)
	}
	return out
}

// WithoutPrefix returns columns without those whose names begin with prefix.
func WithoutPrefix(prefix string) *Columns { return &Columns{drop: prefix} }

var errNotObject = errors.New("the row is not a JSON object, so the pipeline's columns cannot be applied; its text is withheld")

// Apply changes the rows of m, and a key or header that is the value of a hidden
// column. It withholds the text of a message that cannot be read or has no columns,
// because that may hold any of them. A large row of which only some members were read
// keeps its error.
func (c *Columns) Apply(m *relay.Message) {
	if m.Err != nil && m.Body != nil {
		Withhold(m, fmt.Errorf("message %s cannot be read; its text and the reason are withheld, because the pipeline has columns", m.ID))
		return
	}
	if m.Row == nil {
		return // nothing was read
	}
	c.hidden = c.hidden[:0]
	row, err := c.Row(m.Row)
	if err == nil && m.Before != nil {
		m.Before, err = c.Row(m.Before)
	}
	if err != nil {
		Withhold(m, err)
		return
	}
	m.Row = row
	if len(c.hidden) > 0 {
		c.hide(m)
	}
}

// Withhold makes m a message that cannot be delivered and shows nothing of its rows.
func Withhold(m *relay.Message, why error) {
	m.Row, m.Before, m.Body, m.Headers, m.Key, m.BeforeKey = nil, nil, nil, nil, "", ""
	m.Err = relay.Permanent(why)
}

// hide replaces a key and headers that came beside the row and are a hidden value.
func (c *Columns) hide(m *relay.Message) {
	copied := false
	for _, h := range c.hidden {
		if !usesText(m, h.text) || c.shows(m.Row, h.text) {
			continue
		}
		if m.Key == h.text {
			m.Key = h.mask
		}
		for i := range m.Headers {
			if m.Headers[i].Value != h.text {
				continue
			}
			if !copied { // messages of a row share their headers
				m.Headers, copied = slices.Clone(m.Headers), true
			}
			m.Headers[i].Value = h.mask
		}
	}
}

func usesText(m *relay.Message, text string) bool {
	return m.Key == text || slices.ContainsFunc(m.Headers, func(h relay.Header) bool { return h.Value == text })
}

// shows reports whether text is also the value of a column that stays. Then it is no
// secret, and a key keeps its order by it.
func (c *Columns) shows(row []byte, text string) bool {
	c.members, _ = jsonscan.Members(c.members[:0], row)
	return slices.ContainsFunc(c.members, func(m jsonscan.Member) bool {
		c.text = jsonscan.AppendText(c.text[:0], m.Value)
		return string(c.text) == text
	})
}

// Row returns row as the columns leave it, in memory of its own unless nothing changes.
// Values that stay are slices of row, copied as they are.
func (c *Columns) Row(row []byte) ([]byte, error) {
	var err error
	if c.members, err = jsonscan.Members(c.members[:0], row); err != nil {
		return nil, errNotObject
	}
	out := append(make([]byte, 0, len(row)+4*len(c.members)+maskBytes*len(c.rules)), '{')
	changed := false
	for _, m := range c.members {
		r := c.rule(m)
		if r != ruleKeep {
			changed = true
		}
		mask := c.mask(r, m.Value)
		if r == ruleDrop {
			continue
		}
		if len(out) > 1 {
			out = append(out, ", "...)
		}
		out = append(append(out, m.Name...), ": "...)
		out = append(out, mask...)
	}
	if !changed {
		return row, nil
	}
	return append(out, '}'), nil
}

// maskBytes is the length of the longest mask.
const maskBytes = len(hashPrefix) + 2*sha256.Size + 2

func (c *Columns) rule(m jsonscan.Member) rule {
	c.name = jsonscan.AppendText(c.name[:0], m.Name)
	if r, ok := c.rules[string(c.name)]; ok {
		return r
	}
	if c.drop != "" && strings.HasPrefix(string(c.name), c.drop) {
		return ruleDrop
	}
	return c.rest
}

// mask returns the JSON that stands for value. A null stays a null.
func (c *Columns) mask(r rule, value []byte) []byte {
	if r == ruleKeep || c.drop != "" || jsonscan.IsNull(value) {
		return value
	}
	c.text = jsonscan.AppendText(c.text[:0], value)
	shown := ""
	switch string(r) {
	case MaskHash:
		shown = c.hash(c.text)
	case MaskLast4:
		shown = last4(value, c.text)
	}
	if len(c.text) > 0 {
		c.hidden = append(c.hidden, hidden{string(c.text), shown})
	}
	if r == MaskNull || r == ruleDrop {
		return []byte("null")
	}
	quoted, _ := json.Marshal(shown)
	return quoted
}

// hashPrefix begins what the mask hash makes, so that a dead letter that is delivered
// again is not hashed again.
const hashPrefix = "hmac-sha256:"

func (c *Columns) hash(text []byte) string {
	if sum, ok := strings.CutPrefix(string(text), hashPrefix); ok && len(sum) == 2*sha256.Size && strings.Trim(sum, "0123456789abcdef") == "" {
		return string(text)
	}
	c.mac.Reset()
	c.mac.Write(text)
	return hashPrefix + hex.EncodeToString(c.mac.Sum(nil))
}

// last4 leaves a masked value as it is, and so does hash. So a dead letter is not masked
// twice when it is delivered again.
func last4(value, text []byte) string {
	const hiding = "****"
	if value[0] == '{' || value[0] == '[' {
		return hiding
	}
	characters := []rune(string(text))
	if len(characters) < 8 {
		return hiding
	}
	return hiding + string(characters[len(characters)-4:])
}
