#!/usr/bin/env bash
# What the tests need on this machine beside Go and Docker: programs that tests
# start themselves, to stop them, restart them and configure them in ways that a
# shared server cannot be. Lists what is missing, then installs it; it is quick
# when nothing is missing. Debian packages come by apt, the rest into .cache.
# With NO_INSTALL=1 it installs nothing and fails when anything is missing.
#
#   redis-server            relay-redis: TLS, ACLs, eviction, failover
#   nats-server             relay-nats: accounts, TLS, restarts
#   java, Kafka's jars      relay-kafka: SASL, TLS, ACLs, restarts
#   pgbouncer               relaycore/internal/lease: poolers are recognised
#   psql                    relaycore/internal/migrate: the script that `migrate --sql` makes
#   promtool                relaycore/relaycmd: the alerts of deploy/alerts.yaml fire
#   kcat, amqp-get, jq,     e2e/docs: the commands of the tutorials
#   curl, openssl, nats
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

nats=v2.15.2 # also in e2e/images/build.sh
natscli=v0.5.1

say() { echo "setup: $*" >&2; }
sudo_() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
here() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]; }

# Packages start their services when installed, which nobody wants here; a policy
# of exit 101 forbids it for as long as the installation takes.
install_packages() {
	local policy=/usr/sbin/policy-rc.d ours=no
	say "installing $*"
	if [ ! -e $policy ]; then
		ours=yes
		printf '#!/bin/sh\nexit 101\n' | sudo_ tee $policy >/dev/null
		sudo_ chmod 755 $policy
	fi
	local code=0
	{ sudo_ apt-get update -qq &&
		sudo_ env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >&2 || code=$?
	[ $ours = no ] || sudo_ rm -f $policy
	return $code
}

packages=()
here redis-server || packages+=(redis-server)
here psql || packages+=(postgresql-client)
here pgbouncer || packages+=(pgbouncer)
here java || packages+=(default-jre-headless)
here mvn || packages+=(maven)
here kcat || packages+=(kcat)
here amqp-get || packages+=(amqp-tools)
here jq || packages+=(jq)
here promtool || packages+=(prometheus)
here curl || packages+=(curl)
here openssl || packages+=(openssl)
pom=e2e/images/kafka/pom.xml jars=.cache/kafka

missing=()
[ ${#packages[@]} = 0 ] || missing+=("Debian packages, as root with apt-get: ${packages[*]}")
"$root/.cache/bin/nats-server" --version 2>/dev/null | grep -qxF "nats-server: $nats" || missing+=("nats-server $nats, built into .cache/bin")
cli_is_there() { "$root/.cache/bin/nats" --version 2>/dev/null | grep -qxF "$natscli"; }
cli_is_there || missing+=("the nats command $natscli, built into .cache/bin")
cmp -s $pom $jars/pom.xml || missing+=("Kafka's jars, fetched by Maven into .cache/kafka")
docker=$(e2e/scripts/docker.sh --missing)
[ -z "$docker" ] || missing+=("$docker")
if [ ${#missing[@]} -gt 0 ]; then
	if [ -n "${NO_INSTALL:-}" ]; then say "missing, and NO_INSTALL is set:"; else say "to be installed (stop now, and see NO_INSTALL=1, if you do not want it):"; fi
	printf '  %s\n' "${missing[@]}" >&2
	[ -z "${NO_INSTALL:-}" ] || exit 1
fi

[ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"

if ! "$root/.cache/bin/nats-server" --version 2>/dev/null | grep -qxF "nats-server: $nats"; then
	say "building nats-server $nats"
	GOBIN=$root/.cache/bin GOFLAGS='' GOWORK=off CGO_ENABLED=0 go install -trimpath "github.com/nats-io/nats-server/v2@$nats"
fi

if ! cli_is_there; then
	say "building the nats command $natscli"
	GOBIN=$root/.cache/bin GOFLAGS='' GOWORK=off CGO_ENABLED=0 go install -trimpath -ldflags "-X main.version=$natscli" "github.com/nats-io/natscli/nats@$natscli"
fi

# Kafka's jars are those of the image, and as old as its list of them.
if ! cmp -s $pom $jars/pom.xml; then
	say "fetching Kafka's jars"
	rm -rf $jars
	mvn -q -B -f $pom dependency:copy-dependencies "-DoutputDirectory=$root/$jars" >&2
	cp $pom $jars/
fi
