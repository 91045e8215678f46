package webhookrelay

import (
	"net/http"
	"testing"
)

// The same id at two paths is two events, unless a relay or a CloudEvent's source made
// it unique.
func TestIDsOfOtherProducers(t *testing.T) {
	for _, tc := range []struct {
		scope  bool
		path   string
		auth   string
		header http.Header
		body   string
		want   string
	}{
		{true, "/a", authNone, http.Header{"Idempotency-Key": {"1"}}, `{}`, "webhook:/a:1"},
		{true, "/b", authNone, http.Header{"Idempotency-Key": {"1"}}, `{}`, "webhook:/b:1"},
		{true, "/a", authStandard, http.Header{"Webhook-Id": {"1"}}, `{}`, "webhook:/a:1"},
		{true, "/a", authStripe, nil, `{"id":"evt_1"}`, "webhook:/a:evt_1"},
		{true, "/a", authNone, http.Header{"Idempotency-Key": {"1"}, "Pgtrickle-Op": {"insert"}}, `{}`, "1"},
		{true, "/a", authNone, http.Header{"Ce-Id": {"1"}, "Ce-Source": {"shop"}}, `{}`, "shop#1"},
		{true, "/a", authNone, nil, `{"dedup_key":"outbox_orders:1:0","payload":{}}`, "outbox_orders:1:0"},
		{false, "/a", authNone, http.Header{"Idempotency-Key": {"1"}}, `{}`, "1"},
	} {
		s := &source{cfg: sourceDefaults(), scopeIDs: tc.scope}
		s.cfg.Path, s.cfg.Auth = tc.path, tc.auth
		got, err := s.messages(tc.header, "application/json", []byte(tc.body))
		if err != nil || len(got) != 1 || got[0].ID != tc.want {
			t.Errorf("scope %t, path %s, %v %s: %v, %v; want id %q", tc.scope, tc.path, tc.header, tc.body, got, err, tc.want)
		}
	}
}
