#!/usr/bin/env bash
# Writes the files that are made from the backends' Go structs: the keys that the
# SQL functions validate against, docs/config.md and docs/refusals.md. Tests of relay-all
# compare.
set -euo pipefail
cd "$(dirname "$0")/../relay-all"
relay() { GOWORK=off go run . "$@"; }

# Twice: a binary embeds the list that it prints for backends it does not have.
keys=$(relay keys --output json)
printf '%s\n' "$keys" >../relaycore/internal/migrate/backends.json
{
	cat <<'HEAD'
# Configuration

Every key of a pipeline's configuration, with type and default. Written by `make generate` from the
Go structs that decode it.

A pipeline is configured by one JSON object, the `config` of `set_relay_outbox` and
`set_relay_inbox` ([sql.md](sql.md)). `sink_type` or `source_type` names the backend:

```json
{"stream_table": "orders", "sink_type": "nats", "nats_url": "nats://localhost:4222"}
```

A key of a backend has the backend's name in front (`nats_url`). It can also be nested in `sink` or
`source`, without the name; both mean the same:

```json
{"stream_table": "orders", "sink": {"type": "nats", "url": "nats://localhost:4222"}}
```

An unknown key, a wrong type and an unknown variable are refused when the pipeline is set.

| type | how it is written |
|---|---|
| duration | `"250ms"`, `"30s"`; a number where the key ends in `_ms` or `_seconds`, and each duration key may be written with either ending |
| size | a number of bytes, or `"64MiB"` |
| list | a JSON list, or a string with commas |
| template | text with `{stream_table}`, `{op}`, `{outbox_id}`, `{refresh_id}` and `{row.FIELD}`; `{{` is a brace |
| settings | an object with keys of its own |
| secret | a string that is never shown; write it as `${env:NAME}` or `${file:/path}` |

Every string may hold `${env:NAME}`, `${ENV:NAME}` and `${file:/path}`. The relay resolves them when
the pipeline starts. It does not store, log or show the values. The relay's flags `--allow-env` and
`--allow-files` limit which variables and files a pipeline may name.

HEAD
	relay keys
} >../docs/config.md
# From the tables by which the backends classify refusals.
GOWORK=off go test -count=1 -run '^TestRefusalsPage$' . -update
