#!/usr/bin/env bash
# scripts/reproducible.sh MODULE: builds a binary twice, in folders and with build caches of
# their own, and fails if they differ. A release can so be checked by anybody.
set -euo pipefail
cd "$(dirname "$0")/.."
module=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for copy in one two/deeper; do
	mkdir -p "$dir/$copy"
	git ls-files -z | xargs -0 tar c | tar x -C "$dir/$copy"
	(cd "$dir/$copy/$module" && GOWORK=off GOCACHE="$dir/$copy/.cache" CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$dir/$copy/binary" .)
	rm -rf "$dir/$copy/.cache"
done
cmp "$dir/one/binary" "$dir/two/deeper/binary"
echo "reproducible: $module is $(sha256sum <"$dir/one/binary" | cut -c1-64) twice"
