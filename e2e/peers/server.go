package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/segmentio/kafka-go"
)

// bench has the servers.
type bench struct {
	o           options
	url, broker string
	admin       *pgxpool.Pool
	client      *kafka.Client
	postgresPID int // of the container's first process
	kafkaPID    int
	kafkaID     string // the container
	jobs        int
	results     results
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{o: o, url: os.Getenv("RELAY_TEST_DATABASE_URL"), broker: os.Getenv("RELAY_TEST_KAFKA_BROKERS")}
	if b.url == "" || b.broker == "" {
		return nil, errors.New("RELAY_TEST_DATABASE_URL or RELAY_TEST_KAFKA_BROKERS is not set; make bench-peers sets them")
	}
	u, err := url.Parse(b.url)
	if err != nil {
		return nil, err
	}
	if b.admin, err = pgxpool.New(ctx, b.url); err != nil {
		return nil, err
	}
	if _, b.postgresPID, err = container(ctx, u.Port()); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(b.broker)
	if err != nil {
		return nil, err
	}
	if b.kafkaID, b.kafkaPID, err = container(ctx, port); err != nil {
		return nil, err
	}
	b.client = &kafka.Client{Addr: kafka.TCP(b.broker), Timeout: 20 * time.Second}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	b.results.load = strings.Join(strings.Fields(string(load))[:3], " ")
	return b, nil
}

// container returns the id and the first process of the container that serves a port.
func container(ctx context.Context, port string) (id string, pid int, err error) {
	out, err := exec.CommandContext(ctx, "docker", "ps", "-q", "--filter", "publish="+port).Output()
	if err != nil {
		return "", 0, fmt.Errorf("list containers: %w", err)
	}
	if id = strings.TrimSpace(string(out)); id == "" {
		return "", 0, fmt.Errorf("no container serves port %s; measure servers that run in this machine's Docker", port)
	}
	out, err = exec.CommandContext(ctx, "docker", "inspect", "-f", "{{.State.Pid}}", id).Output()
	if err != nil {
		return "", 0, fmt.Errorf("inspect container %s: %w", id, err)
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
	return id, pid, err
}

func (b *bench) newJob(ctx context.Context, p peer) (j *job, err error) {
	b.jobs++
	name := fmt.Sprintf("peers_%d_%d", os.Getpid(), b.jobs)
	j = &job{b: b, peer: p, name: name, topic: name, poll: 10}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.close(ctx))
		}
	}()
	u, err := url.Parse(b.url)
	if err != nil {
		return j, err
	}
	u.Path = "/" + name
	j.url = u.String()
	if j.folder, err = os.MkdirTemp("", "relay-peers-"); err != nil {
		return j, err
	}
	if _, err := b.admin.Exec(ctx, `CREATE DATABASE `+name); err != nil {
		return j, err
	}
	config := kafka.TopicConfig{Topic: j.topic, NumPartitions: 1, ReplicationFactor: 1}
	if _, err := b.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{config}}); err != nil {
		return j, err
	}
	// Sessions begin after the settings of the database were made.
	pool, err := pgxpool.New(ctx, j.url)
	if err != nil {
		return j, err
	}
	j.pool = pool
	if err := p.prepare(ctx, j); err != nil {
		return j, fmt.Errorf("prepare: %w", err)
	}
	pool.Reset()
	return j, nil
}

func (j *job) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := j.pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// close stops the program and drops its database, slot and topic.
func (j *job) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	j.stop(syscall.SIGTERM)
	if j.pool != nil {
		j.pool.Close()
	}
	var errs []error
	// A slot is free once its sender has noticed that the program is gone.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := j.b.admin.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, j.name)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("drop the slot: %w", err))
			break
		}
	}
	if _, err := j.b.admin.Exec(ctx, `DROP DATABASE IF EXISTS `+j.name+` WITH (FORCE)`); err != nil {
		errs = append(errs, err)
	}
	if _, err := j.b.client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{j.topic}}); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(j.folder))...)
}

// stop ends the program by a signal, and by SIGKILL if it takes long.
func (j *job) stop(signal os.Signal) {
	if j.cmd == nil {
		return
	}
	_ = j.cmd.Process.Signal(signal)
	late := time.AfterFunc(20*time.Second, func() { _ = j.cmd.Process.Kill() })
	_ = j.cmd.Wait()
	late.Stop()
	j.cmd = nil
}

// load writes rows 1 to n, one transaction each, from a few sessions.
func (j *job) load(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	const sessions = 4
	var wg sync.WaitGroup
	errs := make([]error, sessions)
	for k := range sessions {
		wg.Go(func() {
			conn, err := j.pool.Acquire(ctx)
			if err != nil {
				errs[k] = err
				return
			}
			defer conn.Release()
			from, to := n*k/sessions+1, n*(k+1)/sessions
			_, err = conn.Exec(ctx, `SET synchronous_commit = off`)
			if err == nil {
				_, err = conn.Exec(ctx, fmt.Sprintf(`DO $do$ BEGIN FOR n IN %d..%d LOOP `, from, to)+
					j.peer.statement("n::bigint")+`; COMMIT; END LOOP; END $do$`)
			}
			_, reset := conn.Exec(ctx, `RESET synchronous_commit`)
			errs[k] = errors.Join(err, reset)
		})
	}
	wg.Wait()
	j.rows, j.next = n, n
	return errors.Join(append(errs, j.exec(ctx, `VACUUM ANALYZE`, `CHECKPOINT`))...)
}

// end returns how many messages the topic has.
func (j *job) end(ctx context.Context) (int, error) {
	r, err := j.b.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{j.topic: {kafka.LastOffsetOf(0)}},
	})
	if err != nil {
		return 0, err
	}
	p := r.Topics[j.topic][0]
	return int(p.LastOffset), p.Error
}

// alive fails once the program has ended by itself, and records its memory.
func (j *job) alive() error {
	if j.cmd == nil {
		return nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", j.cmd.Process.Pid))
	if err != nil {
		return err
	}
	if bytes.Contains(status, []byte("\nState:\tZ")) && !j.peer.drains {
		return errors.New("the program has ended")
	}
	if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
		var kib float64
		if _, err := fmt.Sscan(rest, &kib); err != nil {
			return err
		}
		j.rss = max(j.rss, kib/1024)
	}
	return nil
}

// spent is what the program, PostgreSQL and Kafka have computed so far, in seconds.
type spent struct{ program, postgres, kafka float64 }

func (s spent) since(t spent) spent {
	return spent{s.program - t.program, s.postgres - t.postgres, s.kafka - t.kafka}
}

func (j *job) spent() (s spent, err error) {
	children, seconds := make(map[int][]int), make(map[int]float64)
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return s, err
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			return s, err
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			return s, err
		}
		children[parent] = append(children[parent], pid)
		for _, field := range f[11:15] { // its own time and that of children that ended, in hundredths of a second
			ticks, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return s, err
			}
			seconds[pid] += ticks / 100
		}
	}
	var tree func(pid int) float64
	tree = func(pid int) float64 {
		sum := seconds[pid]
		for _, child := range children[pid] {
			sum += tree(child)
		}
		return sum
	}
	if j.cmd != nil {
		s.program = tree(j.cmd.Process.Pid)
	}
	s.postgres, s.kafka = tree(j.b.postgresPID), tree(j.b.kafkaPID)
	return s, nil
}
