package ends

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

type redisEnd struct {
	url, stream string
	client      *redis.Client
}

func newRedis(_ context.Context, env Env) (End, error) {
	opts, err := redis.ParseURL(env.Server.URL)
	if err != nil {
		return nil, err
	}
	return redisEnd{env.Server.URL, env.Name, redis.NewClient(opts)}, nil
}

func (e redisEnd) Sink() map[string]any { return map[string]any{"url": e.url, "stream": e.stream} }

func (e redisEnd) Source() map[string]any { return map[string]any{"url": e.url, "stream": e.stream} }

func (e redisEnd) Arrived(ctx context.Context) (records []Record, err error) {
	for from := "-"; ; {
		entries, err := e.client.XRangeN(ctx, e.stream, from, "+", 1000).Result()
		if err != nil || len(entries) == 0 {
			return records, err
		}
		for _, entry := range entries {
			records = append(records, Record{ID: text(entry, "dedup_key"), Key: text(entry, "key"), Body: []byte(text(entry, "payload"))})
			from = "(" + entry.ID
		}
	}
}

func text(entry redis.XMessage, field string) string {
	if v, ok := entry.Values[field]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

func (e redisEnd) Produce(ctx context.Context, records []Record) error {
	return retry(ctx, func(ctx context.Context) error {
		_, err := e.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, r := range records {
				name := "dedup_key"
				if r.Foreign {
					name = "id"
				}
				p.XAdd(ctx, &redis.XAddArgs{Stream: e.stream, Values: []any{name, r.ID, "payload", r.Body}})
			}
			return nil
		})
		return err
	})
}

func (e redisEnd) Close() { _ = e.client.Close() } // nothing is lost with it
