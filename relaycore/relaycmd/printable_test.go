package relaycmd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

const hostileText = "k\x1b]52;c;aGk=\a\x1b[1A\x1b[2K\nforged\trow\u009b31m\u202e\x9b"

// A key or an error of a far end writes no row of its own, and reaches no terminal raw.
func TestOutputQuotesControlCharacters(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &program{stdout: &out}
	p.printPreviews([]preview{{
		ID: hostileText, Subject: hostileText, Key: hostileText, Headers: map[string]string{hostileText: hostileText}, Error: hostileText,
		Body: []byte("{\n\"a\": \"\u009b31m\u202e\"}"),
	}})
	if got := strings.Count(out.String(), "\n"); got != 6 {
		t.Errorf("preview prints %d lines, want 6:\n%q", got, out.String())
	}
	err := p.printStatus(&statusReport{
		Pipelines: []pipelineStatus{{Name: hostileText, Backend: hostileText, State: hostileText, Owner: hostileText, Error: hostileText}},
		Instances: []observe.InstanceStatus{{ID: hostileText, Hostname: hostileText, Backends: []string{hostileText}}},
		Warnings:  []string{hostileText},
	})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSuffix(line, "\n"); !isPrintable(line) || strings.HasPrefix(line, "forged") {
			t.Errorf("prints the raw line %q", line)
		}
	}
	if got := printable("grün ☕", 1)[0]; got != "grün ☕" {
		t.Errorf("printable changes plain text: %s", got)
	}
}

// What a server answers reaches a terminal escaped, in errors, results of check and JSON.
func TestServersWriteNoControlCharacters(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &program{stdout: terminal{&out}}
	p.printCheck([]checkResult{{Name: "p", Backend: "redis", Result: "failed", Problem: hostileText, Notes: []string{hostileText}}})
	if err := p.printJSON(hostileText + "\U000e0041"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSuffix(line, "\n"); !isPrintable(strings.ReplaceAll(line, "\t", "")) || strings.HasPrefix(line, "forged") {
			t.Errorf("prints the raw line %q", line)
		}
	}
	var back string
	text := out.String()
	if err := json.Unmarshal([]byte(text[strings.LastIndex(text, `"k`):]), &back); err != nil || !strings.HasSuffix(back, "\U000e0041") {
		t.Errorf("the JSON is %q, %v", back, err)
	}

	// A server that refuses the login, and names what it likes.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			message := "SFATAL\x00VFATAL\x00C28000\x00M" + "\x1b]52;c;aGk=\a\u009b31m" + "\x00\x00"
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = fmt.Fprintf(conn, "E%s%s", binary.BigEndian.AppendUint32(nil, uint32(len(message)+4)), message)
			_ = conn.Close()
		}
	}()
	_, stderr, _ := runBinary(t, nil, "status", "--postgres-url", "postgres://u:p@"+ln.Addr().String()+"/d?sslmode=disable")
	if !strings.Contains(stderr, `\u001b]52`) || !isPrintable(strings.ReplaceAll(stderr, "\n", "")) {
		t.Errorf("status prints %q", stderr)
	}
}
