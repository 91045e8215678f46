package relaycfg

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"testing"
)

func TestConcealer(t *testing.T) {
	t.Setenv("PGTRICKLE_SECRET_TOKEN", "canary \"quoted\"/1234")
	t.Setenv("PGTRICKLE_SECRET_URL", "https://u:canary%5678@host.example/hook/canary?key=canary91")
	access, err := NewAccess("PGTRICKLE_SECRET_*", "")
	if err != nil {
		t.Fatal(err)
	}
	type config struct {
		Password Secret  `json:"password"`
		URLs     Secrets `json:"urls"`
		Name     string  `json:"name"`
	}
	c := NewConcealer()
	c.Add(access, Keys(config{}), []byte(`{"password":"canary-literal","name":"x${env:PGTRICKLE_SECRET_TOKEN}y","other":["${env:PGTRICKLE_SECRET_URL}"],
		"urls":["amqp://guest:canary-amqp@rabbit.example/?k=canary-query","amqp://h.example"]}`))

	for name, text := range map[string]string{
		"a reference":            "no such topic: canary \"quoted\"/1234",
		"quoted":                 "no such topic: " + strconv.Quote("canary \"quoted\"/1234"),
		"escaped in a path":      "GET /canary%20%22quoted%22%2F1234",
		"a URL that parses not":  `parse "https://u:canary%5678@host.example/hook/canary?key=canary91": invalid URL escape`,
		"its password":           "password canary%5678 refused",
		"a literal":              "password canary-literal refused",
		"a password in a list":   "login guest:canary-amqp refused",
		"a query":                `malformed answer "/?k=canary-query"`,
		"the same, in two forms": "canary-literal canary-amqp",
	} {
		if got := c.Text(text); strings.Contains(got, "canary") {
			t.Errorf("%s: Text(%s) = %s, want no canary", name, text, got)
		}
	}
	if got, want := c.Text("dial rabbit.example as guest"), "dial rabbit.example as guest"; got != want {
		t.Errorf("Text = %q, want %q: an operator needs the host", got, want)
	}
	if got, want := c.Text("topic canary \"quoted\"/1234 is gone"), "topic ${env:PGTRICKLE_SECRET_TOKEN} is gone"; got != want {
		t.Errorf("Text = %q, want %q", got, want)
	}

	inner := fmt.Errorf("open canary-literal: %w", fs.ErrNotExist)
	clean := c.Error(inner)
	if strings.Contains(clean.Error(), "canary") || !errors.Is(clean, fs.ErrNotExist) {
		t.Errorf("Error(%v) = %v, want the same error without the canary", inner, clean)
	}
	var log bytes.Buffer
	logger := c.Logger(slog.New(slog.NewJSONHandler(&log, nil))).With("at", "canary-literal").WithGroup("g")
	logger.Error("failed", "err", inner, "list", []string{"canary-literal"}, slog.Group("in", "x", "canary-amqp"), "n", 7)
	if strings.Contains(log.String(), "canary") || !strings.Contains(log.String(), `"n":7`) {
		t.Errorf("the log has %s", log.String())
	}
}
