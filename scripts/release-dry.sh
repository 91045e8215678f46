#!/usr/bin/env bash
# Releases this commit into a bare repository of its own, with all tags, and
# installs it from an empty directory, as a user would. Nothing leaves the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=github.com/grove/pgtrickle-relay
version=v0.0.0-dry.$(date +%s) # Go's module cache never sees a version twice
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

git init -q --bare "$dir/remote.git"
git -C "$dir/remote.git" config receive.shallowUpdate true # a CI may have cloned one commit
git clone -q --no-hardlinks . "$dir/clone"
git -C "$dir/clone" push -q "$dir/remote.git" HEAD:refs/heads/main

# git takes the bare repository for the one at GitHub; Go asks no proxy for it.
export GOPRIVATE=$prefix GOFLAGS=-modcacherw GOWORK=off
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.file://$dir/remote.git.insteadOf" GIT_CONFIG_VALUE_0="https://$prefix"
export GIT_AUTHOR_NAME=release GIT_AUTHOR_EMAIL=release@localhost GIT_COMMITTER_NAME=release GIT_COMMITTER_EMAIL=release@localhost
REMOTE="$dir/remote.git" "$dir/clone/scripts/release.sh" "$version"
rm -rf "$(go env GOMODCACHE)/$prefix"/*"@$version" "$(go env GOMODCACHE)/cache/download/$prefix"/*/@v/"$version".*
echo "release-dry: $(git -C "$dir/remote.git" tag | wc -l) tags in the bare repository"
