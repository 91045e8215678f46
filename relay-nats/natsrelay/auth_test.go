package natsrelay

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// TestFilesOutside: credentials outside of the permitted directories are not read.
func TestFilesOutside(t *testing.T) {
	t.Parallel()
	seed, _ := userKey(t)
	creds, _ := credentials(t)
	access, err := relaycfg.NewAccess("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []connConfig{{NKey: seed}, {Credentials: creds}} {
		if _, err := cfg.options(os.ReadFile); err != nil {
			t.Errorf("options = %v", err)
		}
		if _, err := cfg.options(access.ReadFile); !relay.IsFatal(err) {
			t.Errorf("options outside of the permitted directory = %v, want a fatal error", err)
		}
	}
}

// With each kind of credentials: the right ones create a stream and publish to it, and
// with wrong ones the error is fatal.
func TestCredentials(t *testing.T) {
	t.Parallel()
	seed, public := userKey(t)
	stranger, _ := userKey(t)
	creds, operator := credentials(t)
	otherCreds, _ := credentials(t)
	ca := tlstest.New(t)
	otherCA := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	otherCert, otherKey := otherCA.Issue(t, "relay")
	serverCert, serverKey := ca.Issue(t, "server")
	tlsBlock := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", serverCert, serverKey, ca.File)
	for name, tc := range map[string]struct{ server, right, wrong string }{
		"user and password": {`authorization { user: relay, password: "se cret" }`, `"user":"relay","password":"se cret"`, `"user":"relay","password":"no"`},
		"token":             {`authorization { token: "tok" }`, `"token":"tok"`, `"token":"no"`},
		"nothing at all":    {`authorization { token: "tok" }`, `"token":"tok"`, `"domain":""`},
		"nkey": {
			fmt.Sprintf(`authorization { users: [ { nkey: %s } ] }`, public),
			fmt.Sprintf(`"nkey_file":%q`, seed), fmt.Sprintf(`"nkey_file":%q`, stranger),
		},
		"credentials": {operator, fmt.Sprintf(`"credentials_file":%q`, creds), fmt.Sprintf(`"credentials_file":%q`, otherCreds)},
		"client certificate": {
			tlsBlock, fmt.Sprintf(`"tls_ca":%q,"tls_cert":%q,"tls_key":%q`, ca.File, cert, key),
			fmt.Sprintf(`"tls_ca":%q,"tls_cert":%q,"tls_key":%q`, ca.File, otherCert, otherKey),
		},
		"certificate authority": {
			tlsBlock, fmt.Sprintf(`"tls_ca":%q,"tls_cert":%q,"tls_key":%q`, ca.File, cert, key),
			fmt.Sprintf(`"tls_ca":%q,"tls_cert":%q,"tls_key":%q`, otherCA.File, cert, key),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, tc.server)
			config := fmt.Sprintf(`{"url":%q,"stream":"S","create_stream":true,"subject":"s.{op}",%s}`, srv.url, tc.right)
			if err := openSink(t, config).Publish(testContext(t), messages("s.insert", 1, 3, 1)); err != nil {
				t.Errorf("Publish with the right proof = %v", err)
			}
			src := openSource(t, fmt.Sprintf(`{"url":%q,"stream":"S",%s}`, srv.url, tc.right))
			if got, err := src.Receive(testContext(t), 10); err != nil || len(got) == 0 {
				t.Errorf("Receive with the right proof = %d messages, %v", len(got), err)
			}
			_, err := trySink(testContext(t), fmt.Appendf(nil, `{"url":%q,"stream":"S",%s}`, srv.url, tc.wrong))
			// A server that does not like a certificate may just hang up, which could
			// mean anything.
			if !relay.IsFatal(err) && !errors.Is(err, nats.ErrTLS) {
				t.Errorf("a sink with the wrong proof = %v, want a fatal error", err)
			}
			t.Log(err)
		})
	}
}

func TestUnreachableIsTransient(t *testing.T) {
	t.Parallel()
	_, err := trySink(testContext(t), []byte(`{"url":"nats://user:hunter2@127.0.0.1:1","stream":"S"}`))
	if err == nil || relay.IsFatal(err) || relay.IsPermanent(err) {
		t.Errorf("a server that does not answer = %v, want a transient error", err)
	}
	if strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestPublishNotPermitted(t *testing.T) {
	t.Parallel()
	srv := startServer(t, `authorization { users: [
		{ user: admin, password: admin }
		{ user: relay, password: relay, permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } } ] }`)
	_, js := connect(t, strings.Replace(srv.url, "://", "://admin:admin@", 1))
	if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":"S","user":"relay","password":"relay","ack_timeout":"10s"}`, srv.url))
	began := time.Now()
	err := s.Publish(testContext(t), messages("s.a", 1, 3, 1))
	if !relay.IsFatal(err) || time.Since(began) > 5*time.Second {
		t.Errorf("Publish without permission = %v after %s, want a fatal error at once", err, time.Since(began))
	}
}

// A subject of a row to which the user may not publish stops the messages with it. No
// message of their keys overtakes them.
func TestSubjectOfRowNotPermitted(t *testing.T) {
	t.Parallel()
	srv := startServer(t, `authorization { users: [
		{ user: admin, password: admin }
		{ user: relay, password: relay, permissions: {
			publish: { allow: [">"], deny: ["s.denied"] }, subscribe: ["_INBOX.>"] } } ] }`)
	_, js := connect(t, strings.Replace(srv.url, "://", "://admin:admin@", 1))
	if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":"S","subject":"s.{row.tenant}","user":"relay","password":"relay","ack_timeout":"5s"}`, srv.url))
	conn := s.conn
	for round := range 3 {
		batch := messages("s.a", 10*round+1, 6, 3)
		batch[1].Subject = "s.denied"
		before := streamLen(t, js, "S")
		err := s.Publish(testContext(t), batch)
		partial, ok := errors.AsType[*relay.BatchError](err)
		if !ok || !relay.IsPermanent(partial.Failed[1]) || partial.Failed[4] == nil {
			t.Fatalf("round %d: Publish = %v, want message 1 refused and message 4 of its key not sent", round, err)
		}
		if dead := relaytest.Settle(t, s, batch); !slices.Equal(dead, []string{batch[1].ID}) {
			t.Errorf("round %d: dead letters %v, want the second message", round, dead)
		}
		if got := streamLen(t, js, "S"); got != before+5 {
			t.Errorf("round %d: the stream has %d messages more, want 5", round, got-before)
		}
	}
	if s.conn != conn {
		t.Error("the sink connected again for a subject that is denied")
	}
}

// A server whose control line is shorter than the default ends the connection of a long
// subject. That subject's message is refused, and the others arrive.
func TestShortControlLine(t *testing.T) {
	t.Parallel()
	srv := startServer(t, "max_control_line: 512")
	_, js := connect(t, srv.url)
	if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":"S","subject":"s.{row.city}","ack_timeout":"5s"}`, srv.url))
	batch := messages("s.bonn", 1, 8, 8)
	batch[2].Subject, batch[5].Subject = "s."+strings.Repeat("x", 900), "s."+strings.Repeat("y", 700)
	if dead := relaytest.Settle(t, s, batch); !slices.Equal(dead, []string{batch[2].ID, batch[5].ID}) {
		t.Errorf("dead letters %v, want the third and the sixth message", dead)
	}
	if got := streamLen(t, js, "S"); got != 6 {
		t.Errorf("the stream has %d messages, want 6", got)
	}
}

func streamLen(t *testing.T, js jetstream.JetStream, name string) int {
	t.Helper()
	stream, err := js.Stream(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return int(stream.CachedInfo().State.Msgs)
}

func TestJetStreamDomain(t *testing.T) {
	t.Parallel()
	srv := startServer(t, "", "domain: hub")
	openSink(t, fmt.Sprintf(`{"url":%q,"stream":"S","create_stream":true,"subject":"s.{op}","domain":"hub"}`, srv.url))
	src := openSource(t, fmt.Sprintf(`{"url":%q,"stream":"S","domain":"hub"}`, srv.url))
	_, js := connect(t, srv.url)
	if _, err := js.Publish(testContext(t), "s.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	batch, err := src.Receive(testContext(t), 1)
	if err != nil {
		t.Fatalf("Receive from a domain = %v", err)
	}
	if err := src.Ack(testContext(t), batch); err != nil {
		t.Errorf("Ack in a domain = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := trySink(ctx, fmt.Appendf(nil, `{"url":%q,"stream":"S","domain":"elsewhere"}`, srv.url)); err == nil {
		t.Error("a domain that does not exist = nil, want an error")
	}
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func userKey(t testing.TB) (seedFile, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := pair.Seed()
	public, _ = pair.PublicKey()
	return writeFile(t, "seed", string(seed)), public
}

// credentials makes an operator with one account and one user, and returns the
// user's file and the server's configuration.
func credentials(t testing.TB) (file, server string) {
	t.Helper()
	operator, _ := nkeys.CreateOperator()
	account, _ := nkeys.CreateAccount()
	system, _ := nkeys.CreateAccount()
	user, _ := nkeys.CreateUser()
	public := func(k nkeys.KeyPair) string {
		p, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	sign := func(issuer, subject nkeys.KeyPair, kind string, claims map[string]any) string {
		claims["type"], claims["version"] = kind, 2
		body, err := json.Marshal(map[string]any{
			"jti": kind, "iat": time.Now().Unix(), "iss": public(issuer), "sub": public(subject), "name": kind, "nats": claims,
		})
		if err != nil {
			t.Fatal(err)
		}
		b64 := base64.RawURLEncoding
		token := b64.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." + b64.EncodeToString(body)
		sig, err := issuer.Sign([]byte(token))
		if err != nil {
			t.Fatal(err)
		}
		return token + "." + b64.EncodeToString(sig)
	}
	unlimited := map[string]any{
		"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
		"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
	}
	server = fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s: %s\n%s: %s\n}",
		sign(operator, operator, "operator", map[string]any{}), public(system),
		public(account), sign(operator, account, "account", map[string]any{"limits": unlimited}),
		public(system), sign(operator, system, "account", map[string]any{"limits": map[string]any{"subs": -1, "conn": -1, "leaf": -1, "data": -1, "payload": -1}}))
	seed, _ := user.Seed()
	file = writeFile(t, "creds", fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n"+
		"-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n",
		sign(account, user, "user", map[string]any{"subs": -1, "data": -1, "payload": -1}), seed))
	return file, server
}
