package relaynet_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// TestLines goes through a protocol in which a line "$n" announces n bytes.
func TestLines(t *testing.T) {
	t.Parallel()
	refused := errors.New("no such line")
	for name, tc := range map[string]struct {
		sends, want string
		between     bool
	}{
		"lines and values":    {sends: "+OK\r\n$5\r\nhe\r\nl\r\n+\r\n$0\r\n\r\n", between: true},
		"in a line":           {sends: "+OK\r\n$"},
		"in a value":          {sends: "$5\r\nhell"},
		"in its line break":   {sends: "$5\r\nhello\r"},
		"a longer value":      {sends: "$4\r\nhello\r\n", want: "of another length than it announced"},
		"a value without end": {sends: "$5\r\nhello+OK\r\n", want: "of another length than it announced"},
		"a long line":         {sends: "+" + strings.Repeat("x", 2048) + "\r\n", want: "a line of more than 1 KiB"},
		"a refused line":      {sends: "+OK\r\nHTTP/1.1", want: refused.Error()},
	} {
		for _, size := range []int{1, 3, len(tc.sends)} {
			lines := &relaynet.Lines{Peer: testPeer, Max: 1 << 10, Take: func(line []byte, whole bool) (int, error) {
				switch {
				case line[0] != '+' && line[0] != '$':
					return 0, refused
				case !whole || line[0] == '+':
					return -1, nil
				}
				return strconv.Atoi(strings.TrimSpace(string(line[1:])))
			}}
			var err error
			for rest := tc.sends; rest != "" && err == nil; rest = rest[min(size, len(rest)):] {
				err = lines.Check([]byte(rest[:min(size, len(rest))]))
			}
			switch {
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%s, %d bytes at a time: %v, want an error with %q", name, size, err, tc.want)
			case tc.want == "" && (err != nil || lines.Between() != tc.between):
				t.Errorf("%s, %d bytes at a time: %v, between two lines %t, want %t", name, size, err, lines.Between(), tc.between)
			}
		}
	}
}
