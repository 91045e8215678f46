package webhookrelay

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

const secretPrefix = "whsec_"

// decodeSecrets returns the keys that Standard Webhooks secrets stand for.
func decodeSecrets(key string, secrets relaycfg.Secrets) ([][]byte, error) {
	var keys [][]byte
	for _, s := range secrets {
		secret := []byte(s.Reveal())
		if encoded, ok := strings.CutPrefix(s.Reveal(), secretPrefix); ok {
			var err error
			if secret, err = base64.StdEncoding.DecodeString(encoded); err != nil {
				return nil, relaycfg.Errorf(key, "is not base64 behind %s", secretPrefix)
			}
		}
		if len(secret) == 0 {
			return nil, relaycfg.Errorf(key, "is empty")
		}
		keys = append(keys, secret)
	}
	return keys, nil
}

// signer makes the signatures of Standard Webhooks, one for each key. It is used by
// one goroutine.
type signer []hash.Hash

func newSigner(keys [][]byte) signer {
	var s signer
	for _, k := range keys {
		s = append(s, hmac.New(sha256.New, k))
	}
	return s
}

// sign returns "v1,<base64>" of id.timestamp.body for each key, separated by
// spaces. It reads a stream once more than it is sent.
func (s signer) sign(ctx context.Context, id, timestamp string, body content) (string, error) {
	for _, mac := range s {
		mac.Reset()
		_, _ = mac.Write([]byte(id + "." + timestamp + "."))
	}
	if body.stream == nil {
		_, _ = s.Write(body.bytes)
	} else if err := body.copyTo(ctx, s); err != nil {
		return "", fmt.Errorf("sign message %s: %w", id, err)
	}
	signatures := make([]string, len(s))
	for i, mac := range s {
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " "), nil
}

// Write adds p to all signatures.
func (s signer) Write(p []byte) (int, error) {
	for _, mac := range s {
		_, _ = mac.Write(p)
	}
	return len(p), nil
}

// verifier authenticates requests. Every comparison with a secret, or with a value
// made from one, takes the same time for all requests.
type verifier struct {
	auth      string
	header    string
	timestamp string // header of auth hmac, or ""
	keys      [][]byte
	hashed    [][sha256.Size]byte // of auth bearer
	tolerance time.Duration
	now       func() time.Time
}

func newVerifier(cfg *sourceConfig) verifier {
	v := verifier{auth: cfg.Auth, keys: cfg.secrets, timestamp: cfg.TimestampHeader, tolerance: cfg.Tolerance.D(), now: time.Now}
	v.header = map[string]string{
		authBearer: cfg.AuthHeader, authHMAC: cfg.SignatureHeader, authGitHub: "X-Hub-Signature-256", authStripe: "Stripe-Signature",
	}[cfg.Auth]
	for _, k := range cfg.secrets {
		v.hashed = append(v.hashed, sha256.Sum256(k))
	}
	return v
}

// before checks what it can without the body.
func (v *verifier) before(h http.Header) bool {
	if v.auth != authBearer {
		return true
	}
	token := h.Get(v.header)
	if scheme, rest, ok := strings.Cut(token, " "); ok && strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(rest)
	}
	// Hashes have one length, so the time does not depend on that of a token.
	sum := sha256.Sum256([]byte(token))
	match := 0
	for i := range v.hashed {
		match |= subtle.ConstantTimeCompare(sum[:], v.hashed[i][:])
	}
	return match == 1
}

// after checks the signature of a body, which is in parts.
func (v *verifier) after(h http.Header, body ...[]byte) bool {
	switch v.auth {
	case authNone, authBearer:
		return true
	case authHMAC:
		return v.hmac(h, body)
	case authGitHub:
		signature, ok := strings.CutPrefix(h.Get(v.header), "sha256=")
		return ok && v.matchHex(signature, body...)
	case authStandard:
		return v.standard(h, body)
	case authStripe:
		return v.stripe(h.Get(v.header), body)
	}
	return false
}

// hmac is a signature of the body, with its time in front where timestamp has a header.
func (v *verifier) hmac(h http.Header, body [][]byte) bool {
	signature := strings.TrimPrefix(h.Get(v.header), "sha256=")
	if v.timestamp == "" {
		return v.matchHex(signature, body...)
	}
	at := h.Get(v.timestamp)
	return v.fresh(at) && v.matchHex(signature, slices.Concat([][]byte{[]byte(at + ".")}, body)...)
}

func (v *verifier) matchHex(signature string, parts ...[]byte) bool {
	sum, err := hex.DecodeString(signature)
	return err == nil && v.match(sum, parts...)
}

// match reports whether sum is the MAC of parts with one of the keys.
func (v *verifier) match(sum []byte, parts ...[]byte) bool {
	match := false
	for _, key := range v.keys {
		mac := hmac.New(sha256.New, key)
		for _, p := range parts {
			_, _ = mac.Write(p)
		}
		match = hmac.Equal(sum, mac.Sum(nil)) || match
	}
	return match
}

// maxSignatures bounds the work that a request can cause.
const maxSignatures = 8

// standard is Standard Webhooks, also under the names that Svix gives its
// headers.
func (v *verifier) standard(h http.Header, body [][]byte) bool {
	id, timestamp, signatures := h.Get(headerWebhookID), h.Get(headerWebhookTimestamp), h.Get(headerWebhookSignature)
	if id == "" && signatures == "" {
		id, timestamp, signatures = h.Get("Svix-Id"), h.Get("Svix-Timestamp"), h.Get("Svix-Signature")
	}
	if id == "" || !v.fresh(timestamp) {
		return false
	}
	signed := slices.Concat([][]byte{[]byte(id + "." + timestamp + ".")}, body)
	tried := 0
	for s := range strings.SplitSeq(signatures, " ") {
		encoded, ok := strings.CutPrefix(s, "v1,")
		if !ok {
			continue
		}
		if tried++; tried > maxSignatures {
			return false
		}
		sum, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err == nil && v.match(sum, signed...) {
			return true
		}
	}
	return false
}

// stripe reads "t=<seconds>,v1=<hex>,…".
func (v *verifier) stripe(header string, body [][]byte) bool {
	var timestamp string
	var signatures []string
	for part := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "t":
			if timestamp != "" {
				return false // it is not certain which one is signed
			}
			timestamp = value
		case "v1":
			if signatures = append(signatures, value); len(signatures) > maxSignatures {
				return false
			}
		}
	}
	if !v.fresh(timestamp) {
		return false
	}
	signed := slices.Concat([][]byte{[]byte(timestamp + ".")}, body)
	for _, s := range signatures {
		if v.matchHex(s, signed...) {
			return true
		}
	}
	return false
}

// fresh reports whether a timestamp is within tolerance of the relay's clock.
func (v *verifier) fresh(timestamp string) bool {
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return false
	}
	return v.now().Sub(time.Unix(seconds, 0)).Abs() <= v.tolerance
}
