// Package brokers starts the servers that the tests talk to, each in a container
// of its own. On request it restarts, kills or pauses them, or cuts the network.
//
// A server runs the official image where that can be pulled, else the one that
// e2e/images builds from Debian and Maven packages. RELAY_E2E_IMAGES=official or
// own overrides the choice. Nothing here is a mock: every server is the real one.
package brokers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"golang.org/x/sync/errgroup"
)

// Options controls how a fleet starts its servers. The zero value is a good choice.
type Options struct {
	Log io.Writer // what is being done, a line each; nil means standard error
	// Large raises the servers' own message size limits, so that a message of
	// 1 MiB fits with its envelope.
	Large bool
	// Ports fixes host ports by server name; a port that is not named is a free one.
	Ports map[string]int
}

// Fleet is a set of servers that end together.
type Fleet struct {
	opts    Options
	net     *testcontainers.DockerNetwork
	images  images
	mu      sync.Mutex
	servers map[string]*Server
}

// spec is what differs from server to server.
type spec struct {
	official string // the official image, pinned
	own      string // the name by which e2e/images builds its stand-in
	port     int    // inside the container
	env      string // the RELAY_TEST_ variable that holds its address
	request  func(opts Options, hostPort int) testcontainers.ContainerRequest
	url      func(hostPort int) string
	ready    func(ctx context.Context, url string) error // nil once the server answers its own protocol
	started  func(ctx context.Context, s *Server) error  // what the server's container waits for; may be nil

	forgetful bool // see Server.Forgetful
}

func specs() map[string]spec {
	return map[string]spec{
		"pg18":     postgres("postgres:18.1", "postgres18", "RELAY_TEST_DATABASE_URL"),
		"pg15":     postgres("postgres:15.15", "postgres15", "RELAY_TEST_DATABASE_URL_15"),
		"pgold":    postgres("postgres:13.23", "postgres13", "RELAY_TEST_DATABASE_URL_OLD"),
		"nats":     nats("nats:2.15.2", "nats", "RELAY_TEST_NATS_URL"),
		"natsold":  nats("nats:2.10.27", "natsold", "RELAY_TEST_NATS_URL_OLD"),
		"kafka":    kafka(),
		"redis":    redis(),
		"rabbitmq": rabbitmq(),
		"sqs":      sqs(),
	}
}

// Names lists the servers that can be started.
func Names() []string { return slices.Sorted(maps.Keys(specs())) }

// New returns an empty fleet. It removes what a killed run on this machine left.
func New(ctx context.Context, opts Options) (*Fleet, error) {
	if opts.Log == nil {
		opts.Log = os.Stderr
	}
	// The fleet ends what it starts; testcontainers' own reaper is one more image
	// that would have to be pulled.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		return nil, err
	}
	if os.Getenv("TESTCONTAINERS_HOST_OVERRIDE") == "" {
		if err := os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "localhost"); err != nil {
			return nil, err
		}
	}
	testcontainersQuiet()
	if err := removeOrphans(ctx); err != nil {
		return nil, err
	}
	nw, err := network.New(ctx, network.WithLabels(labels()))
	if err != nil {
		return nil, fmt.Errorf("create container network: %w", err)
	}
	return &Fleet{opts: opts, net: nw, servers: make(map[string]*Server)}, nil
}

// Start starts the named servers in parallel and returns when all of them answer.
func (f *Fleet) Start(ctx context.Context, names ...string) error {
	var g errgroup.Group
	for _, name := range names {
		g.Go(func() error {
			if err := f.start(ctx, name); err != nil {
				return fmt.Errorf("start %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (f *Fleet) start(ctx context.Context, name string) error {
	sp, ok := specs()[name]
	if !ok {
		return fmt.Errorf("unknown server; there are %s", strings.Join(Names(), ", "))
	}
	image, err := f.images.choose(ctx, f.opts.Log, sp)
	if err != nil {
		return err
	}
	return f.run(ctx, name, image, sp)
}

// run starts a server in a container of image and waits until it answers.
func (f *Fleet) run(ctx context.Context, name, image string, sp spec) error {
	began := time.Now()
	var c testcontainers.Container
	var port int
	var err error
	// The host port is chosen here and not by Docker, because Docker chooses again
	// at every restart. Another process may take it in between: then another one.
	for try := 0; ; try++ {
		if port = f.opts.Ports[name]; port == 0 {
			if port, err = freePort(); err != nil {
				return err
			}
		}
		req := sp.request(f.opts, port)
		req.Image = image
		publish(&req, sp.port, port)
		req.Networks = []string{f.net.Name}
		req.Labels = labels()
		c, err = testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{ContainerRequest: req, Started: true})
		if err == nil {
			break
		}
		if c != nil {
			err = errors.Join(err, c.Terminate(context.WithoutCancel(ctx)))
		}
		if try == 3 || f.opts.Ports[name] != 0 ||
			!strings.Contains(err.Error(), "port is already allocated") && !strings.Contains(err.Error(), "address already in use") {
			return err
		}
	}
	s := &Server{Name: name, Image: image, URL: sp.url(port), Env: sp.env, Port: port, spec: sp, container: c, network: f.net.Name}
	f.mu.Lock()
	f.servers[name] = s
	f.mu.Unlock()
	if sp.started != nil {
		if err := sp.started(ctx, s); err != nil {
			return err
		}
	}
	if err := s.Ready(ctx); err != nil {
		return err
	}
	fmt.Fprintf(f.opts.Log, "brokers: %s is up at %s after %.1fs (%s)\n", name, s.URL, time.Since(began).Seconds(), image)
	return nil
}

// publish binds a port of the container to a port of this machine's loopback.
func publish(req *testcontainers.ContainerRequest, inside, outside int) {
	port := apinetwork.MustParsePort(fmt.Sprintf("%d/tcp", inside))
	req.ExposedPorts = []string{port.String()}
	more := req.HostConfigModifier
	req.HostConfigModifier = func(h *container.HostConfig) {
		h.PortBindings = apinetwork.PortMap{port: {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(outside)}}}
		if more != nil {
			more(h)
		}
	}
}

// Server returns a started server.
func (f *Fleet) Server(name string) *Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.servers[name]
}

// Environ returns the RELAY_TEST_ variables of the started servers.
func (f *Fleet) Environ() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var env []string
	for _, s := range f.servers {
		env = append(env, s.Env+"="+s.URL)
	}
	slices.Sort(env)
	return env
}

// Close ends all servers.
func (f *Fleet) Close(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, s := range f.servers {
		ids = append(ids, s.container.GetContainerID())
	}
	clear(f.servers)
	var errs []error
	if len(ids) > 0 {
		_, err := docker(ctx, append([]string{"rm", "--force", "--volumes"}, ids...)...)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, f.net.Remove(ctx))...)
}

const labelOwner = "pgtrickle-relay-e2e.owner" // "<boot id>/<pid>" of the process that started it

// Owner is the value of the label by which a later run knows whether the process
// that started a container is still there.
func Owner() string { return bootID() + "/" + strconv.Itoa(os.Getpid()) }

func labels() map[string]string { return map[string]string{labelOwner: Owner()} }

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // empty elsewhere: then nothing is ever an orphan
	return strings.TrimSpace(string(id))
}

// removeOrphans removes the containers and networks of processes of this machine
// that have died without doing so.
func removeOrphans(ctx context.Context) error {
	dead := func(label string) bool {
		boot, pid, _ := strings.Cut(label, "/")
		if boot == "" {
			return false
		}
		_, err := os.Stat("/proc/" + pid)
		return boot != bootID() || errors.Is(err, os.ErrNotExist)
	}
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "-a"}, []string{"rm", "--force", "--volumes"}},
		{[]string{"network", "ls"}, []string{"network", "rm"}},
	} {
		out, err := docker(ctx, append(kind.list, "--filter", "label="+labelOwner, "--format", `{{.ID}} {{.Label "`+labelOwner+`"}}`)...)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if id, label, _ := strings.Cut(strings.TrimSpace(line), " "); dead(label) {
				if _, err := docker(ctx, append(kind.remove, id)...); err != nil &&
					!strings.Contains(err.Error(), "No such") && !strings.Contains(err.Error(), "already in progress") {
					return err
				}
			}
		}
	}
	return nil
}
