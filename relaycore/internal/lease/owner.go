package lease

import (
	"hash/fnv"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// Owner returns the id of the instance that should run the pipeline, or "" when
// none can. Each instance has a score for each pipeline, and the highest wins:
// when one comes or goes, only what it wins or held moves.
func Owner(members []Instance, key store.Key, backend string) string {
	var best string
	var bestScore uint64
	for _, m := range members {
		if m.Draining || !slices.Contains(m.Backends, backend) {
			continue
		}
		if sc := score(m.ID, key); best == "" || sc > bestScore || (sc == bestScore && m.ID < best) {
			best, bestScore = m.ID, sc
		}
	}
	return best
}

// Served reports whether any instance, draining or not, has the backend.
func Served(members []Instance, backend string) bool {
	return slices.ContainsFunc(members, func(m Instance) bool { return slices.Contains(m.Backends, backend) })
}

func score(instance string, key store.Key) uint64 {
	h := fnv.New64a()
	for _, s := range []string{instance, string(key.Direction), key.Name} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	// FNV alone mixes its last bytes badly.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
