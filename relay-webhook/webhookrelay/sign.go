package webhookrelay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

const secretPrefix = "whsec_"

// decodeSecrets returns the keys that Standard Webhooks secrets stand for.
func decodeSecrets(key string, secrets relaycfg.Secrets) ([][]byte, error) {
	var keys [][]byte
	for _, s := range secrets {
		encoded, ok := strings.CutPrefix(s.Reveal(), secretPrefix)
		if !ok {
			keys = append(keys, []byte(encoded))
		} else {
			k, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil {
				return nil, relaycfg.Errorf(key, "is not base64 behind %s", secretPrefix)
			}
			keys = append(keys, k)
		}
		if len(keys[len(keys)-1]) == 0 {
			return nil, relaycfg.Errorf(key, "is empty")
		}
	}
	return keys, nil
}

// signer makes the signatures of Standard Webhooks. It is used by one goroutine.
type signer struct {
	macs []hash.Hash
	buf  []byte
	sum  []byte
}

func newSigner(keys [][]byte) *signer {
	s := &signer{}
	for _, k := range keys {
		s.macs = append(s.macs, hmac.New(sha256.New, k))
	}
	return s
}

// sign returns "v1,<base64>" of id.timestamp.body for each key, separated by
// spaces.
func (s *signer) sign(id, timestamp string, body []byte) string {
	out := s.buf[:0]
	for i, mac := range s.macs {
		mac.Reset()
		s.sum = append(append(append(append(s.sum[:0], id...), '.'), timestamp...), '.')
		_, _ = mac.Write(s.sum)
		_, _ = mac.Write(body)
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, "v1,"...)
		s.sum = mac.Sum(s.sum[:0])
		out = base64.StdEncoding.AppendEncode(out, s.sum)
	}
	s.buf = out
	return string(out)
}
