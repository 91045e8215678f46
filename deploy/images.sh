#!/usr/bin/env bash
# Builds one container image per binary, FROM scratch, from the root Dockerfile.
#
#   deploy/images.sh [BINARY...]     (default: every one)
#
# Where a golang image can be had, the Dockerfile's own build stage compiles the
# binary. Where not, the image is made of the binary in bin/ (built first, by
# make) and this machine's CA certificates. RELAY_IMAGES=docker or bin overrides
# the choice. VERSION names a tag besides dev, PREFIX the repository. PUSH=1 builds
# for amd64 and arm64 and pushes, which needs buildx and a login.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=${VERSION:-dev} PREFIX=${PREFIX:-pgtrickle-relay}
REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
say() { echo "images: $*" >&2; }

all=$(cut -d' ' -f1 deploy/sizes.txt | grep -v '^#')
# shellcheck disable=SC2086 # a list
[ $# -gt 0 ] || set -- $all

golang=$(sed -n 's/^FROM .*\(golang:[^ ]*\).*/\1/p' Dockerfile)
mode=${RELAY_IMAGES:-}
if [ -z "$mode" ]; then
	mode=bin
	if docker buildx version >/dev/null 2>&1 &&
		{ docker image inspect "$golang" || timeout 20 docker manifest inspect "$golang"; } >/dev/null 2>&1; then
		mode=docker
	fi
fi
case $mode in
docker) say "compiling in $golang, as the Dockerfile says" ;;
bin) say "$golang cannot be used here: taking the binaries from bin/" ;;
*) say "RELAY_IMAGES=$mode: want docker or bin"; exit 2 ;;
esac

# The binary of relay-all is called pgtrickle-relay; every other one is called as its folder.
folder_of() { if [ "$1" = pgtrickle-relay ]; then echo relay-all; else echo "$1"; fi; }

from_bin() { # from_bin BINARY IMAGE: the second stage of the Dockerfile over a folder like its /out
	local context
	[ -x "bin/$1" ] || make -s build
	context=$(mktemp -d)
	mkdir -p "$context/out/etc/ssl/certs"
	cp "bin/$1" "$context/out/relay"
	cp /etc/ssl/certs/ca-certificates.crt "$context/out/etc/ssl/certs/"
	echo 'relay:x:65532:65532:relay:/:/nonexistent' >"$context/out/etc/passwd"
	chmod -R a+rX "$context"
	sed -n '/^FROM scratch/,$p' Dockerfile | sed 's|^COPY --from=build /out|COPY out|' >"$context/Dockerfile"
	DOCKER_BUILDKIT=0 docker build "${args[@]}" -t "$2" "$context" >"$context/log" 2>&1 || { cat "$context/log" >&2; exit 1; }
	rm -rf "$context"
}

for binary in "$@"; do
	folder=$(folder_of "$binary") image=$PREFIX/$binary:$VERSION
	args=(--build-arg "BINARY=$folder" --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION")
	if [ -n "${PUSH:-}" ]; then
		docker buildx build -q --push --platform linux/amd64,linux/arm64 "${args[@]}" -t "$image" . >/dev/null
		say "pushed $image"
		continue
	fi
	case $mode in
	docker) docker buildx build -q --load "${args[@]}" -t "$image" . >/dev/null ;;
	bin) from_bin "$binary" "$image" ;;
	esac
	docker tag "$image" "$PREFIX/$binary:dev"
	say "built $image"
done
