package brokers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// images decides which image a server runs.
type images struct {
	once  sync.Once
	reach error // nil where the official images can be pulled
}

// choose returns the image for a server and makes sure that the machine has it. It
// prefers the official one if the machine has it or can pull it.
func (i *images) choose(ctx context.Context, log io.Writer, sp spec) (string, error) {
	mode := os.Getenv("RELAY_E2E_IMAGES")
	switch mode {
	case "", "auto", "official":
		if _, err := docker(ctx, "image", "inspect", sp.official); err == nil {
			return sp.official, nil
		}
		err := i.reachable(ctx, log, sp.official)
		if err == nil {
			_, err = docker(ctx, "pull", "--quiet", sp.official)
		}
		if err == nil {
			return sp.official, nil
		}
		if mode == "official" {
			return "", err
		}
	case "own":
	default:
		return "", fmt.Errorf("RELAY_E2E_IMAGES=%s: want official, own or auto", mode)
	}
	return build(ctx, log, sp.own)
}

// reachable asks once for all servers whether official images can be had at all.
func (i *images) reachable(ctx context.Context, log io.Writer, image string) error {
	i.once.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if _, i.reach = docker(ctx, "manifest", "inspect", image); i.reach != nil {
			fmt.Fprintln(log, "brokers: official images cannot be pulled here; using those that e2e/images builds")
			return
		}
		fmt.Fprintln(log, "brokers: using official images")
	})
	return i.reach
}

func build(ctx context.Context, log io.Writer, name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "e2e", "images", "build.sh"), name)
	cmd.Stderr = log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Root returns the repository's root folder, from anywhere inside it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "images", "build.sh")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("e2e/images/build.sh not found in any folder above; run this inside the repository")
		}
		dir = up
	}
}
