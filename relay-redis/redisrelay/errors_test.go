package redisrelay

import (
	"fmt"
	"io"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// reply is an answer of the server, as go-redis makes it.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, ofRow bool) error {
		return classifyFor(fmt.Errorf("add: %w", reply(answer)), ofRow)
	})
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		reply("OOM command not allowed when used memory > 'maxmemory'."): "transient",
		reply("READONLY You can't write against a read only replica."):   "transient",
		reply("LOADING Redis is loading the dataset in memory"):          "transient",
		reply("MISCONF Redis is configured to save RDB snapshots"):       "transient",
		reply("NOREPLICAS Not enough good replicas to write."):           "transient",
		reply("MASTERDOWN Link with MASTER is down"):                     "transient",
		reply("CLUSTERDOWN The cluster is down"):                         "transient",
		reply("TRYAGAIN Multiple keys request during rehashing of slot"): "transient",
		reply("NOGROUP No such key 's' or consumer group 'g'"):           "transient",
		reply("BUSY Redis is busy running a script."):                    "transient",
		reply("ERR max number of clients reached"):                       "transient",
		io.EOF: "transient",
		reply("WRONGTYPE Operation against a key holding the wrong kind of value"): "fatal",
		reply("NOPERM this user has no permissions to run the 'xadd' command"):     "fatal",
		reply("WRONGPASS invalid username-password pair or user is disabled."):     "fatal",
		reply("NOAUTH Authentication required."):                                   "fatal",
		reply("ERR unknown command 'XAUTOCLAIM', with args beginning with: 's'"):   "fatal",
		reply("ERR DB index is out of range"):                                      "fatal",
		reply("NOPERM No permissions to access a key"):                             "fatal",
		reply("ERR Elements are too large to be stored"):                           "permanent",
		reply("ERR Protocol error: invalid bulk length"):                           "permanent",
	} {
		got := classify(fmt.Errorf("add: %w", err))
		class := "transient"
		switch {
		case relay.IsFatal(got):
			class = "fatal"
		case relay.IsPermanent(got):
			class = "permanent"
		}
		if class != want {
			t.Errorf("classify(%v) is %s, want %s", err, class, want)
		}
	}
}
