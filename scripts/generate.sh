#!/usr/bin/env bash
# Writes what is made from the backends' Go structs: the keys that the SQL
# functions validate against, and docs/config.md. A test of relay-all compares.
set -euo pipefail
cd "$(dirname "$0")/../relay-all"
relay() { GOWORK=off go run . "$@"; }

# Twice: a binary embeds the list that it prints for backends it does not have.
keys=$(relay keys --output json)
printf '%s\n' "$keys" >../relaycore/internal/migrate/backends.json
{
	cat <<'HEAD'
# Configuration

A pipeline is configured by one JSON object, the `config` of `set_relay_outbox` and `set_relay_inbox` ([sql.md](sql.md)). A backend's key `K` is written
flat with the backend's name before it (`nats_url`), or nested in `sink` or `source` beside `"type"` (`{"sink": {"type": "nats", "url": …}}`). Both mean
the same. `sink_type` or `source_type` says which backend. An unknown key, a wrong type and an unknown variable are refused when the pipeline is set.

- **Durations** are strings (`"250ms"`, `"30s"`), or numbers in keys that end in `_ms` or `_seconds`; a duration key can be written with either ending.
- **Sizes** are numbers of bytes, or strings (`"64MiB"`). **Lists** are JSON lists, or strings with commas.
- **Templates** may hold `{stream_table}`, `{op}`, `{outbox_id}`, `{refresh_id}` and `{row.FIELD}`; `{{` is a brace.
- **Secrets**: every string may hold `${env:NAME}`, `${ENV:NAME}` and `${file:/path}`, which are resolved when the pipeline starts, and never stored, logged or shown.

HEAD
	relay keys
} >../docs/config.md
