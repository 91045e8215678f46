#!/usr/bin/env bash
# Makes sure that Docker can be used: installs Debian's packages and starts the
# daemon where that is needed. Reports what it does; quick when all is well.
# --missing prints what it would install or start, and does nothing. With
# NO_INSTALL=1 it fails where it would have to install or start anything.
set -euo pipefail

say() { echo "docker: $*" >&2; }
sudo_() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
answers() { timeout 10 docker version >/dev/null 2>&1; }

if answers; then exit; fi
missing() {
	command -v dockerd >/dev/null || echo "Debian packages, as root with apt-get: docker.io, iptables"
	command -v docker >/dev/null || echo "Debian package docker-cli"
	echo "the Docker daemon, started"
}
if [ "${1:-}" = --missing ]; then missing | paste -sd ';' | sed 's/;/; /g'; exit; fi
if [ -n "${NO_INSTALL:-}" ]; then
	say "missing, and NO_INSTALL is set: $(missing | paste -sd ';')"
	exit 1
fi
if ! command -v dockerd >/dev/null; then
	say "installing docker.io"
	sudo_ apt-get update -qq >&2
	sudo_ env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables >&2
fi
# Since Debian 13 the client is a package of its own.
if ! command -v docker >/dev/null; then
	say "installing docker-cli"
	sudo_ env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker-cli >&2
fi
if answers; then exit; fi
log=${TMPDIR:-/tmp}/dockerd.log
if [ -d /run/systemd/system ]; then
	say "starting the docker service"
	sudo_ systemctl start docker || true
else
	say "starting dockerd, log in $log"
	sudo_ sh -c "setsid nohup dockerd ${DOCKERD_FLAGS:-} >'$log' 2>&1 </dev/null &"
fi
for _ in $(seq 60); do
	if answers; then exit; fi
	sleep 0.5
done
if sudo_ docker version >/dev/null 2>&1; then
	say "the daemon runs, but $(id -un) may not use it: add the user to the docker group, or run as root"
else
	say "dockerd does not answer"
	tail -20 "$log" >&2 || true
fi
exit 1
