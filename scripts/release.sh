#!/usr/bin/env bash
# Tags a release of every module in lockstep: scripts/release.sh v1.2.3
#
# On main each go.mod reaches its siblings by replace, so that every module builds
# alone, offline and in Docker. `go install` refuses a replace. So a release is
# made of commits beside main: relaycore is tagged on main's own commit, then each
# module that needs it gets a commit without replaces, and its tag there. Main
# stays as it is. The tag vX.Y.Z on the last commit starts the release workflow.
#
# Tags that are there already are kept, so that a release that was interrupted can
# be run again. REMOTE names the repository that gets the tags.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: scripts/release.sh vX.Y.Z}
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+ ]] || { echo "release: $version is not vX.Y.Z" >&2; exit 2; }
[ -z "$(git status --porcelain)" ] || { echo "release: the work tree has changes" >&2; exit 1; }
prefix=github.com/grove/pgtrickle-relay
main=$(git rev-parse HEAD)
remote=${REMOTE:-origin}
trap 'git checkout -q -' EXIT

publish() { # publish MODULE...: tag the commit, and push the tags
	for m in "$@"; do git rev-parse -q --verify "refs/tags/$m/$version" >/dev/null || git tag "$m/$version"; done
	git push -q "$remote" $(printf "refs/tags/%s/$version " "$@")
}

unreplace() { # unreplace MODULE: depend on released siblings
	(
		cd "$1"
		for sibling in $(go mod edit -json | sed -n "s|.*\"Path\": \"$prefix/\([^\"]*\)\".*|\1|p" | sort -u); do
			[ "$sibling" = "$1" ] && continue
			go mod edit -dropreplace "$prefix/$sibling" -require "$prefix/$sibling@$version"
		done
		GOWORK=off GOFLAGS=-mod=mod go mod tidy
		GOWORK=off go build ./...
	)
}

publish relaycore
git checkout -q --detach "$main"
backends=(relay-nats relay-kafka relay-redis relay-sqs relay-rabbitmq relay-webhook relay-stdout relay-pginbox)
for m in "${backends[@]}"; do unreplace "$m"; done
git commit -qam "release $version: backends on the released relaycore"
publish "${backends[@]}"
unreplace relay-all
git commit -qam "release $version: relay-all on the released backends"
publish relay-all
git rev-parse -q --verify "refs/tags/$version" >/dev/null || git tag "$version"
git push -q "$remote" "refs/tags/$version"

# The proof: from an empty directory, as a user would.
bin=$(mktemp -d)
(cd "$bin" && GOBIN=$bin GOWORK=off go install "$prefix/relay-nats@$version" && GOBIN=$bin GOWORK=off go install "$prefix/relay-all@$version")
"$bin/relay-nats" version
"$bin/relay-all" version
rm -r "$bin"
