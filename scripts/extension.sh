#!/usr/bin/env bash
# Runs the tests of the extension against a server that has the real pg_trickle, 0.37 or
# later. Each test creates a database there and drops it. The URL is that of a superuser:
#   scripts/extension.sh postgres://postgres@localhost:5432/postgres
set -euo pipefail
cd "$(dirname "$0")/../relaycore"
[ $# -eq 1 ] || { sed -n 2,4p "../scripts/$(basename "$0")"; exit 2; }
export RELAY_TEST_PGTRICKLE_URL=$1 RELAY_TEST_DATABASE_URL=$1 RELAY_TEST_REQUIRE=1
go test -count=1 -v -run '^Test(StreamTable|ClaimChecksUnder|SharedDelta|Superseded|DeltaTable)' ./internal/outbox
go test -count=1 -v ./internal/exttest
go test -count=1 -v -run '^TestKilledBeside' ./relaycmd
