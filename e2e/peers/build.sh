#!/usr/bin/env bash
# Fills a folder with the programs of make bench-peers. A program that cannot be had is
# reported and left out; the run then fails behind the figures of the others.
# go-pq-cdc and go-pq-cdc-kafka can be checkouts side by side in the folder of
# PEERS_GO_PQ_CDC, where the Go proxy does not have them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
bin=$(cd "$1" && pwd)
debezium=3.6.1.Final

say() { echo "peers: $*" >&2; }

(cd "$here/../cmd/bench" && go build -trimpath -o "$bin/bench" .)
(cd "$here" && GOWORK=off go build -trimpath -o "$bin/peers" . && GOWORK=off go build -trimpath -o "$bin/watermill" ./watermill)

if [ ! -e "$bin/debezium-server/debezium-server-dist-$debezium-runner.jar" ]; then
	say "fetching Debezium Server $debezium, 782 MB, once"
	rm -rf "$bin/debezium-server"
	if mvn -q org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
		-Dartifact=io.debezium:debezium-server-dist:$debezium:tar.gz -DoutputDirectory="$bin/fetched"; then
		tar -xzf "$bin/fetched/debezium-server-dist-$debezium.tar.gz" -C "$bin"
	else
		say "Debezium Server cannot be had from Maven's repository"
	fi
	rm -rf "$bin/fetched"
fi
[ ! -d "$bin/debezium-server" ] || { mkdir -p "$bin/debezium-server/config" && cp "$here/debezium.properties" "$bin/debezium-server/config/application.properties"; }

# Debezium needs Java 21 or later: that of JAVA_HOME, or the newest in /usr/lib/jvm.
java=0
for home in ${JAVA_HOME:-/usr/lib/jvm/*}; do
	v=$("$home/bin/java" --version 2>/dev/null | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p') || true
	if [ "${v:-0}" -gt $java ]; then java=$v && ln -sfn "$home" "$bin/java"; fi
done
[ "$java" -ge 21 ] || { say "Debezium Server needs Java 21 or later, and the newest here is $java; set JAVA_HOME" && rm -f "$bin/java"; }

rm -rf "$bin/go-pq-cdc" "$bin/go-pq-cdc.src"
cp -r "$here/go-pq-cdc" "$bin/go-pq-cdc.src"
cd "$bin/go-pq-cdc.src"
export GOWORK=off GOFLAGS=-mod=mod
if [ -n "${PEERS_GO_PQ_CDC:-}" ]; then
	for m in go-pq-cdc go-pq-cdc-kafka; do go mod edit -replace "github.com/Trendyol/$m=$(cd "$PEERS_GO_PQ_CDC/$m" && pwd)"; done
fi
{ go mod tidy && go build -trimpath -o "$bin/go-pq-cdc" .; } >"$bin/go-pq-cdc.log" 2>&1 ||
	say "go-pq-cdc cannot be built: $(tail -n 1 "$bin/go-pq-cdc.log")"
