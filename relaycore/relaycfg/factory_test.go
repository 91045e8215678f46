package relaycfg_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type logConfig struct {
	Prefix string   `json:"prefix" relay:"required" doc:"What each line begins with."`
	Limit  int      `json:"limit" relay:"min=1" doc:"Bytes of a line."`
	Tags   []string `json:"tags" doc:"Tags."`
}

type logSink struct{ cfg logConfig }

func (*logSink) Publish(context.Context, []relay.Message) error { return nil }
func (*logSink) Close() error                                   { return nil }

type logSource struct{ cfg logConfig }

func (*logSource) Receive(context.Context, int) ([]relay.Message, error) { return nil, nil }
func (*logSource) Ack(context.Context, []relay.Message) error            { return nil }
func (*logSource) Close() error                                          { return nil }

func newLogSink(_ context.Context, _ relay.Env, cfg logConfig) (*logSink, error) {
	if cfg.Prefix == "unreachable" {
		return nil, errors.New("no such host")
	}
	return &logSink{cfg}, nil
}

func newLogSource(_ context.Context, _ relay.Env, cfg logConfig) (*logSource, error) {
	if cfg.Prefix == "unreachable" {
		return nil, errors.New("no such host")
	}
	return &logSource{cfg}, nil
}

func TestFactory(t *testing.T) {
	t.Parallel()
	defaults := logConfig{Limit: 10, Tags: []string{"x"}}
	sink, source := relaycfg.Sink(defaults, newLogSink), relaycfg.Source(defaults, newLogSource)
	for name, tc := range map[string]struct{ raw, wantErr string }{
		"decodes":          {raw: `{"prefix":"p","tags":["y"]}`},
		"a wrong key":      {raw: `{"prefix":"p","limt":1}`, wantErr: `key "limt": unknown key; did you mean "limit"?`},
		"a required key":   {raw: `{}`, wantErr: `key "prefix": is required: What each line begins with.`},
		"open's own error": {raw: `{"prefix":"unreachable"}`, wantErr: "no such host"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, sinkErr := sink.New(t.Context(), relay.Env{}, []byte(tc.raw))
			src, sourceErr := source.New(t.Context(), relay.Env{}, []byte(tc.raw))
			for _, err := range []error{sinkErr, sourceErr} {
				if got := fmt.Sprint(err); err != nil && got != tc.wantErr || err == nil && tc.wantErr != "" {
					t.Errorf("New(%s) = %v, want %q", tc.raw, err, tc.wantErr)
				}
			}
			if tc.wantErr != "" {
				if s != nil || src != nil {
					t.Errorf("New(%s) = %v and %v with an error, want nil interfaces", tc.raw, s, src)
				}
				return
			}
			if got := s.(*logSink).cfg; got.Limit != 10 || got.Tags[0] != "y" {
				t.Errorf("New(%s) decoded %+v, want the default limit and the tag y", tc.raw, got)
			}
		})
	}
	if defaults.Tags[0] != "x" {
		t.Errorf("a configuration changed the defaults: %v", defaults.Tags)
	}
	if !(relay.SinkFactory{}).IsZero() || sink.IsZero() || source.IsZero() {
		t.Error("IsZero is wrong")
	}
}

func ExampleSink() {
	type config struct {
		Prefix string `json:"prefix" relay:"required" doc:"What each line begins with."`
		Limit  int    `json:"limit" relay:"min=1" doc:"Bytes of a line."`
	}
	open := func(_ context.Context, _ relay.Env, cfg config) (*logSink, error) {
		fmt.Println("open", cfg.Prefix, cfg.Limit)
		return &logSink{}, nil
	}
	backend := relay.Backend{Name: "log", Sink: relaycfg.Sink(config{Limit: 80}, open)}

	_, err := backend.Sink.New(context.Background(), relay.Env{}, []byte(`{"prefix":"> "}`))
	fmt.Println(err)
	_, err = backend.Sink.New(context.Background(), relay.Env{}, []byte(`{"prefix":"> ","limit":0}`))
	fmt.Println(err)
	// Output:
	// open >  80
	// <nil>
	// key "limit": is 0; must be at least 1
}
