#!/usr/bin/env bash
# Checks the messages of new commits: a subject `package: imperative` of at most
# 72 characters, and a body where the change is larger than a few lines. Commits
# up to the base are older than the rule. A shallow clone without the base is
# checked as far as it reaches back to it, which is not at all: it passes.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${COMMITS_SINCE:-99ded85176b577bd3af066d9e9f8197fac875e07}
small=20 # changed lines that need no body; those of generated files do not count
generated=(':!*.txt' ':!*.json' ':!*.sum' ':!*.golden' ':!docs/config.md' ':!docs/refusals.md')

if ! git rev-parse -q --verify "$base^{commit}" >/dev/null || ! git merge-base --is-ancestor "$base" HEAD 2>/dev/null; then
	echo "commits: $base is not in this clone's history; nothing is checked" >&2
	exit 0
fi

bad=0
complain() {
	echo "commits: $(git log -1 --format='%h %s' "$1"): $2" >&2
	bad=1
}

for commit in $(git rev-list --no-merges "$base..HEAD"); do
	subject=$(git log -1 --format=%s "$commit")
	body=$(git log -1 --format=%b "$commit")
	[ ${#subject} -le 72 ] || complain "$commit" "the subject has ${#subject} characters; shorten it to 72"
	[[ $subject =~ ^[a-zA-Z0-9_./,*-]+(,\ [a-zA-Z0-9_./*-]+)*:\ [^\ ] || $subject =~ ^(Revert|release)\  ]] ||
		complain "$commit" "write the subject as 'package: imperative'"
	if [ -z "$body" ]; then
		changed=$(git show --format= --numstat "$commit" -- . "${generated[@]}" | awk '{n += $1 + $2} END {print n + 0}')
		[ "$changed" -le $small ] || complain "$commit" "$changed changed lines and no body; say why, and how it was tested"
	fi
done
exit $bad
