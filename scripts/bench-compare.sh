#!/usr/bin/env bash
# scripts/bench-compare.sh BENCHSTAT: runs the benchmarks of the pure parts (split,
# build, template, encode, decode) of BASE and of the working tree in turn, and fails
# on a loss over BENCH_LOSS percent. Times are only compared within this run. A loss
# is measured again with twice the rounds, and counts when it is there again.
#
# BASE is a commit. Without it, BASE is where this branch left main; on main itself it
# is the commit that recorded the baseline, so that small losses add up until somebody
# records a new one with BENCH_RECORD=1. Allocations are compared with that file too.
set -euo pipefail
cd "$(dirname "$0")/.."
benchstat=$1
baseline=docs/benchmarks.baseline.txt
loss=${BENCH_LOSS:-10}
rounds=${BENCH_ROUNDS:-20}
# Package and benchmarks; no server, no network.
suites=(
	'relaycore/internal/jsonscan ^BenchmarkSplit$/^jsonscan'
	'relaycore/internal/outbox/rows ^BenchmarkDecode$'
	'relaycore/internal/outbox/progress ^BenchmarkAdd$'
	'relaycore/internal/codec ^Benchmark(Encode|Decode|Reshape)$'
	'relaycore/relay ^BenchmarkTemplate$'
	'relay-kafka/kafkarelay ^BenchmarkEncode$'
)

base_commit() {
	local head fork recorded
	if [ -n "${BASE:-}" ]; then
		git rev-parse -q --verify "$BASE^{commit}" && return
		echo "bench-compare: BASE=$BASE is no commit of this clone; fetch it or name another" >&2
		exit 1
	fi
	head=$(git rev-parse HEAD)
	fork=$(git merge-base main HEAD 2>/dev/null || true)
	recorded=$(git log -1 --format=%H -- $baseline)
	if [ -n "$fork" ] && { [ "$fork" != "$head" ] || ! git diff --quiet HEAD; }; then
		echo "$fork"
	elif [ -n "$recorded" ] && [ "$recorded" != "$head" ]; then
		echo "$recorded"
	else
		git rev-parse -q --verify 'HEAD^' || true
	fi
}

# build TREE BIN compiles the tests of each suite that TREE has.
build() {
	local suite module package
	for suite in "${suites[@]}"; do
		package=${suite%% *} module=${package%%/*}
		[ -d "$1/$package" ] || continue
		(cd "$1/$module" && go test -c -o "$2/${package//\//-}" "./${package#*/}")
	done
}

# measure BIN OUT FILTER runs each suite of BIN once. It runs in the package's
# folder, as go test does.
measure() {
	local suite package
	for suite in "${suites[@]}"; do
		package=${suite%% *}
		[ -x "$1/${package//\//-}" ] || continue
		(cd "$package" && GOMAXPROCS=1 "$1/${package//\//-}" -test.run '^$' -test.bench "${suite#* }" \
			-test.benchtime 20ms -test.benchmem) >"$work/out" || { cat "$work/out" >&2; exit 1; }
		{ echo "pkg: $package"; grep '^Benchmark' "$work/out" || true; } >>"$2"
	done
}

# losses BEFORE AFTER UNITS prints the benchmarks that lost, as benchstat's CSV says:
# name, before, its spread, after, its spread, difference, p. Allocations that vary from
# round to round are those of a pool that the garbage collector emptied.
losses() {
	"$benchstat" -format csv -alpha 0.01 -filter ".unit:(cpu-ns/op OR B/op OR allocs/op)" "$1" "$2" 2>/dev/null | awk -F, -v loss="$loss" -v units="$3" '
		BEGIN { least["allocs/op"] = 0.5; least["B/op"] = 64 }
		/^pkg: / { package = substr($1, 6); next }
		$1 == "" && $2 != "" && $6 == "vs base" { unit = $2; next }
		index(units, "[" unit "]") && $1 != "geomean" && NF >= 6 && $6 != "~" && $6 != "" {
			if ($4 > $2 * (1 + loss / 100) && $4 - $2 >= least[unit] && (unit ~ /sec/ || $5 + 0 <= 20))
				printf "%s/%s %s: %s, now %s (%s)\n", package, $1, unit, $2, $4, $6
		}'
}

work=$(mktemp -d)
trap 'git worktree remove --force "$work/base" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/before" "$work/after"
build "$PWD" "$work/after"
if [ -n "${BENCH_RECORD:-}" ]; then
	for ((i = 0; i < rounds; i++)); do measure "$work/after" "$work/recorded"; done
	{
		echo "# Written by BENCH_RECORD=1 make bench-compare, $(go env GOVERSION). Times are for reading; allocations are compared."
		cat "$work/recorded"
	} >$baseline
	exit 0
fi

# against_baseline RESULTS prints what allocates more than the file says.
against_baseline() {
	local more
	more=$(losses $baseline "$1" '[allocs/op]')
	[ -z "$more" ] || printf '\nmore allocations than %s:\n%s' $baseline "$more"
}

base=$(base_commit)
if [ -z "$base" ]; then
	echo "bench-compare: this clone has one commit: allocations are compared with $baseline, times with nothing; fetch the history"
	for ((i = 0; i < 5; i++)); do measure "$work/after" "$work/first.after"; done
	bad=$(against_baseline "$work/first.after")
	[ -z "$bad" ] || { echo "bench-compare:$bad" >&2; exit 1; }
	exit 0
fi
echo "bench-compare: $(git log -1 --format='%h %s' "$base") beside the working tree, $rounds rounds in turn"
git worktree add -q --detach "$work/base" "$base"
build "$work/base" "$work/before"
# Odd rounds begin with the other side, so that neither is always the warm one.
compare() { # OUT ROUNDS
	local i
	for ((i = 0; i < $2; i++)); do
		if ((i % 2)); then
			measure "$work/after" "$1.after"
			measure "$work/before" "$1.before"
		else
			measure "$work/before" "$1.before"
			measure "$work/after" "$1.after"
		fi
	done
}
compare "$work/first" "$rounds"
"$benchstat" -alpha 0.01 -filter ".unit:(cpu-ns/op OR allocs/op)" "$work/first.before" "$work/first.after" 2>/dev/null | sed "s|$work/||g"
bad=$(losses "$work/first.before" "$work/first.after" '[cpu-ns/op][cpu-sec/op][B/op][allocs/op]')
if [ -n "$bad" ]; then
	printf 'bench-compare: measuring again, as these lost:\n%s\n' "$bad"
	compare "$work/second" $((2 * rounds))
	bad=$(losses "$work/second.before" "$work/second.after" '[cpu-ns/op][cpu-sec/op][B/op][allocs/op]' | grep -F "$(cut -d: -f1 <<<"$bad")" || true)
fi
bad+=$(against_baseline "$work/first.after")
[ -z "$bad" ] && exit 0
printf 'bench-compare: over %s%% lost, twice:\n%s\n' "$loss" "$bad" >&2
echo "bench-compare: make it faster, or record a new baseline with BENCH_RECORD=1 and give the reason in the commit" >&2
exit 1
