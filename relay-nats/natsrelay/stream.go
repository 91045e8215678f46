package natsrelay

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// openStream finds the stream called name, or, without a name, the one that
// takes subject. When it is missing and create is not nil, it creates it.
func openStream(ctx context.Context, l *link, name, subject string, create *jetstream.StreamConfig) (jetstream.Stream, error) {
	if name == "" {
		var err error
		if name, err = l.js.StreamNameBySubject(ctx, subject); err != nil {
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				return nil, relay.Fatal(fmt.Errorf("no stream takes subject %q: create one, or set stream and create_stream", subject))
			}
			return nil, l.apiError(ctx, fmt.Errorf("look up the stream of subject %q: %w", subject, err))
		}
	}
	s, err := l.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if create == nil {
			return nil, relay.Fatal(fmt.Errorf("stream %q does not exist: create it, or set create_stream", name))
		}
		if s, err = l.js.CreateStream(ctx, *create); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s, err = l.js.Stream(ctx, name) // someone was faster
		}
		if err != nil {
			return nil, l.apiError(ctx, fmt.Errorf("create stream %q for subjects %s: %w", name, strings.Join(create.Subjects, ", "), err))
		}
	}
	if err != nil {
		return nil, l.apiError(ctx, fmt.Errorf("look up stream %q: %w", name, err))
	}
	return s, nil
}

// apiError classifies err, and prefers what the server said to a timeout that
// merely followed from it.
func (l *link) apiError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if refused := l.refused(); refused != nil {
		return refused
	}
	return classifyAPI(err)
}

// validSubject reports whether a message can be published to subject.
func validSubject(subject string) bool {
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || token == "*" || token == ">" || strings.ContainsAny(token, " \t\r\n\f\x00") {
			return false
		}
	}
	return true
}

// matches reports whether pattern, which may hold wildcards, covers subject.
func matches(pattern, subject string) bool {
	for {
		p, prest, pmore := strings.Cut(pattern, ".")
		if p == ">" {
			return subject != ""
		}
		s, srest, smore := strings.Cut(subject, ".")
		if s == "" || (p != "*" && p != s) {
			return false
		}
		if !pmore || !smore {
			return pmore == smore
		}
		pattern, subject = prest, srest
	}
}
