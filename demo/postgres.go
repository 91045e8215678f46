package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
)

// postgres is a server for the demo only.
type postgres struct {
	port   int
	origin string // directory of its programs, or "fetched"
	stop   func() error
}

// url returns the address for a user. The password is the user's name.
func (p *postgres) url(user string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/postgres?sslmode=disable", user, user, p.port)
}

// minVersion is the oldest version of PostgreSQL that the relay supports.
const minVersion = 13

// startPostgres runs an installed PostgreSQL, or fetches one.
func startPostgres(ctx context.Context, dir string, fetch bool) (*postgres, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if bin := installed(ctx); bin != "" && !fetch {
		return startInstalled(ctx, bin, dir, port)
	}
	show.linef("Fetching PostgreSQL (about 15 MB), because no version from %d on is installed.", minVersion)
	cache := filepath.Join(dir, "cache")
	if home, err := os.UserCacheDir(); err == nil && os.MkdirAll(filepath.Join(home, "pgtrickle-demo"), 0o755) == nil {
		cache = filepath.Join(home, "pgtrickle-demo")
	}
	var log bytes.Buffer
	db := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Port(uint32(port)).Username("postgres").Password("postgres").Database("postgres").
		CachePath(cache).RuntimePath(filepath.Join(dir, "run")).DataPath(filepath.Join(dir, "data")).
		StartTimeout(time.Minute).Logger(&log))
	if err := db.Start(); err != nil {
		return nil, fmt.Errorf("start a fetched PostgreSQL: %w\n%s", err, log.Bytes())
	}
	return &postgres{port: port, origin: "fetched", stop: db.Stop}, nil
}

// installed returns the directory of the newest PostgreSQL found, or "".
func installed(ctx context.Context) string {
	var dirs []string
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	best, newest := "", minVersion-1
	for _, dir := range slices.Compact(dirs) {
		if v := versionOf(ctx, dir); v > newest {
			best, newest = dir, v
		}
	}
	return best
}

var versionNumber = regexp.MustCompile(`\) (\d+)`)

func versionOf(ctx context.Context, dir string) int {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return 0
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	m := versionNumber.FindSubmatch(out)
	if err != nil || m == nil {
		return 0
	}
	v, _ := strconv.Atoi(string(m[1]))
	return v
}

func startInstalled(ctx context.Context, bin, dir string, port int) (*postgres, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"),
		"-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "shared_buffers=128MB")
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not reach it: the demo stops it
	if err := server.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	p := &postgres{port: port, origin: bin, stop: func() error {
		_ = server.Process.Signal(syscall.SIGINT) // fast shutdown
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = server.Process.Kill()
			<-ended
		}
		return log.Close()
	}}
	return p, p.await(ctx, ended, log.Name())
}

func (p *postgres) await(ctx context.Context, ended <-chan error, log string) error {
	for {
		conn, err := pgx.Connect(ctx, p.url("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), p.stop())
		case err := <-ended:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("postgres ended: %w\n%s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close() // the port is free again
	return ln.Addr().(*net.TCPAddr).Port, nil
}
