#!/usr/bin/env bash
# Prints the size of every binary and image, and fails where an image is over the
# limit that deploy/sizes.txt has for it.
#
#   deploy/sizes.sh           check the images that deploy/images.sh built
#   deploy/sizes.sh --write   also write the table to docs/images.md and the README
set -euo pipefail
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-pgtrickle-relay}

mb() { awk -v n="$1" 'BEGIN { printf "%.1f", n / 1e6 }'; }

table() {
	local failed=0 binary limit why size compressed note
	echo "| image | binary MB | image MB | pulled (gzip) MB | limit MB | client |"
	echo "|---|---|---|---|---|---|"
	while read -r binary limit why; do
		case $binary in "#"*) continue ;; esac
		size=$(docker image inspect --format '{{.Size}}' "$PREFIX/$binary:dev")
		compressed=$(docker save "$PREFIX/$binary:dev" | gzip -c | wc -c)
		note=
		if [ "$size" -gt $((limit * 1000000)) ]; then
			note=" (over the limit)" failed=1
		fi
		echo "| \`$binary\` | $(mb "$(stat -c %s "bin/$binary")") | $(mb "$size")$note | $(mb "$compressed") | $limit | $why |"
	done <deploy/sizes.txt
	return $failed
}

if [ "${1:-}" = --write ]; then
	{
		echo "# Images"
		echo
		echo "Written by \`deploy/sizes.sh --write\`; \`make images\` checks the limits (\`deploy/sizes.txt\`)."
		echo "Every image is FROM scratch: the static binary, CA certificates, a user without rights."
		echo
		table
	} >docs/images.md
	cat docs/images.md
else
	table
fi
