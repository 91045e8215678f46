package kafkarelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// fetcher reads partitions of one leader, several in a request.
type fetcher struct {
	cluster   *cluster
	wait      time.Duration
	maxBytes  int
	committed bool // skip the records of aborted transactions
}

// spot is the next offset to read in a partition.
type spot struct {
	place
	offset int64
	part   *assigned // nil for a sink's
	scope  string    // of the topic's life, in ids
}

// place names a partition.
type place struct {
	topic     string
	partition int
}

// read asks the leader of all spots for records, calls visit with each, and moves the
// spots behind them. A spot whose partition has an error does not move; read returns
// that error after it has visited the others.
func (f *fetcher) read(ctx context.Context, spots []*spot, visit func(*spot, *protocol.Record) error) error {
	maxBytes := int32(min(f.maxBytes, cmp.Or(f.cluster.fetch, f.maxBytes)))
	req := &fetch.Request{
		ReplicaID: -1, SessionEpoch: -1, MinBytes: 1, MaxBytes: maxBytes,
		MaxWaitTime: int32(f.wait / time.Millisecond),
	}
	if f.committed {
		req.IsolationLevel = 1
	}
	byPlace := make(map[place]*spot, len(spots))
	for _, s := range spots {
		part := fetch.RequestPartition{
			Partition: int32(s.partition), CurrentLeaderEpoch: -1, FetchOffset: s.offset, LogStartOffset: -1,
			PartitionMaxBytes: maxBytes,
		}
		if n := len(req.Topics); n > 0 && req.Topics[n-1].Topic == s.topic {
			req.Topics[n-1].Partitions = append(req.Topics[n-1].Partitions, part)
		} else {
			req.Topics = append(req.Topics, fetch.RequestTopic{Topic: s.topic, Partitions: []fetch.RequestPartition{part}})
		}
		byPlace[place{s.topic, s.partition}] = s
	}
	ctx, cancel := context.WithTimeout(ctx, f.wait+2*dialTimeout)
	defer cancel()
	m, err := f.cluster.transport.RoundTrip(ctx, f.cluster.client.Addr, req)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	res := m.(*fetch.Response)
	if res.ErrorCode != 0 {
		return fmt.Errorf("fetch: %w", kafka.Error(res.ErrorCode))
	}
	var failure error
	for i := range res.Topics {
		for j := range res.Topics[i].Partitions {
			p := &res.Topics[i].Partitions[j]
			s := byPlace[place{res.Topics[i].Topic, int(p.Partition)}]
			if s == nil {
				continue
			}
			if p.ErrorCode != 0 {
				failure = &spotError{s, kafka.Error(p.ErrorCode)}
				continue
			}
			if err := f.walk(s, p, visit); err != nil {
				return err
			}
		}
	}
	return failure
}

// spotError is the error of one partition.
type spotError struct {
	spot *spot
	code kafka.Error
}

func (e *spotError) Error() string {
	return fmt.Sprintf("read partition %d of topic %q: %v", e.spot.partition, e.spot.topic, e.code)
}

func (e *spotError) Unwrap() error { return e.code }

// walk visits the records of one partition's answer. The client returns the records of
// aborted transactions too; the answer lists these transactions.
func (f *fetcher) walk(s *spot, p *fetch.ResponsePartition, visit func(*spot, *protocol.Record) error) (err error) {
	stream, ok := p.RecordSet.Records.(*protocol.RecordStream)
	if !ok {
		return nil
	}
	before := s.offset
	defer func() {
		// Compaction leaves batches without records. Such a batch covers the offset that
		// was asked for, so this offset has no record.
		if err == nil && s.offset == before && len(stream.Records) > 0 {
			s.offset++
		}
	}()
	aborted := make(map[int64]bool)
	pending := byFirstOffset(p.AbortedTransactions)
	for _, r := range stream.Records {
		skip := false
		switch b := r.(type) {
		case *protocol.ControlBatch:
			skip = true
			delete(aborted, b.ProducerID)
		case *protocol.RecordBatch:
			for len(pending) > 0 && pending[0].FirstOffset <= b.BaseOffset {
				aborted[pending[0].ProducerID] = true
				pending = pending[1:]
			}
			skip = f.committed && b.Attributes.Transactional() && aborted[b.ProducerID]
		}
		for {
			var rec *protocol.Record
			rec, err = r.ReadRecord()
			if errors.Is(err, io.EOF) {
				err = nil
				break
			}
			if err != nil {
				return fmt.Errorf("decode partition %d of topic %q at offset %d: %w", s.partition, s.topic, s.offset, err)
			}
			if rec.Offset >= s.offset { // a batch may begin before the offset asked for
				if !skip {
					err = visit(s, rec)
				}
				if err == nil {
					s.offset = rec.Offset + 1
				}
			}
			closeRecord(rec)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// byFirstOffset sorts the aborted transactions of an answer. The broker lists them in
// the order in which they were aborted.
func byFirstOffset(aborted []fetch.ResponseTransaction) []fetch.ResponseTransaction {
	return slices.SortedFunc(slices.Values(aborted), func(a, b fetch.ResponseTransaction) int {
		return cmp.Compare(a.FirstOffset, b.FirstOffset)
	})
}

func closeRecord(r *protocol.Record) {
	if r.Key != nil {
		_ = r.Key.Close()
	}
	if r.Value != nil {
		_ = r.Value.Close()
	}
}
