#!/usr/bin/env bash
# Builds the server images for the e2e tests from Debian packages, Maven
# artifacts and Go modules, for machines that cannot pull the official ones.
#
#   build.sh                build everything, unless official images can be pulled
#   build.sh NAME...        build what is missing; print one image reference a line
#   build.sh --ref NAME...  print the references, build nothing
#   build.sh --list         the names
#
# An image's tag is a hash of its recipe and of its parents', so that a changed
# recipe is a new image and an unchanged one is there at once. Safe to run
# several times in parallel. Progress goes to standard error.
set -euo pipefail
cd "$(dirname "$0")"

names="postgres18 postgres15 postgres13 nats natsold kafka redis rabbitmq sqs"
repository=pgtrickle-relay-e2e
suite=trixie
state=${TMPDIR:-/tmp}/$repository-$(id -u)
mkdir -p "$state"

say() { echo "e2e/images: $*" >&2; }
sudo_() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# recipe NAME: the folder, the parent image and the build arguments of an image.
recipe() {
	parent=base folder=$1 artifact= gomodule=
	case $1 in
	base) parent= ;;
	java) ;;
	natsold | redis | rabbitmq) ;;
	nats) gomodule=github.com/nats-io/nats-server/v2@v2.15.2 ;;
	kafka | sqs) parent=java ;;
	postgres13) folder=postgres artifact=13.23.0 ;;
	postgres15) folder=postgres artifact=15.15.0 ;;
	postgres18) folder=postgres artifact=18.1.0 ;;
	*) say "no image called $1; there are: $names"; exit 2 ;;
	esac
}

hash_of() {
	local parent folder artifact gomodule up=
	recipe "$1"
	[ -z "$parent" ] || up=$(hash_of "$parent")
	{
		echo "$1 $suite $artifact$gomodule $up $(uname -m)"
		[ "$1" = base ] || find "$folder" -type f | LC_ALL=C sort | xargs cat
	} | sha256sum | cut -c1-16
}

ref() { echo "$repository/$1:$(hash_of "$1")"; }

need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null && return
	[ -z "${NO_INSTALL:-}" ] || { say "missing, and NO_INSTALL is set: $2 (for $1)"; exit 1; }
	say "installing $2 (for $1)"
	sudo_ apt-get update -qq >&2
	sudo_ env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >&2
}

# The base image is a minimal Debian, made from the mirror that this machine's
# own apt uses, with its proxy settings. Nothing of either is in the repository.
build_base() {
	local image=$1 root mirror
	need debootstrap debootstrap
	root=$(mktemp -d)
	# shellcheck disable=SC2016 # $(REPO_URI) is apt's
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -E '/debian/?$' | head -1 || true)
	sudo_ debootstrap --variant=minbase "$suite" "$root" ${mirror:+"$mirror"} >"$state/base.log" 2>&1 || {
		tail -20 "$state/base.log" >&2
		exit 1
	}
	apt-config dump Acquire | grep -i proxy | sudo_ tee "$root/etc/apt/apt.conf.d/90host" >/dev/null || true
	sudo_ sh -c "rm -rf '$root'/var/cache/apt/archives/*.deb '$root'/usr/share/doc/* '$root'/usr/share/man/* '$root'/usr/share/locale/*"
	sudo_ tar -C "$root" -c . | docker import --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' - "$image" >/dev/null
	sudo_ rm -rf "$root"
}

# Maven's own client fetches jars, with the settings of this machine.
fetch_maven() { # fetch_maven CONTEXT: fills in what the context's pom.xml lists
	need mvn maven
	mvn -q -B -f "$1/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1/jars" >&2
}

fetch_postgres() { # fetch_postgres CONTEXT VERSION
	local arch=amd64
	[ "$(uname -m)" = x86_64 ] || arch=arm64v8
	need mvn maven
	(cd "$1" && mvn -q -B dependency:unpack -DoutputDirectory="$1" \
		-Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-linux-$arch:$2" >&2)
	mv "$1"/postgres-linux-*.txz "$1/postgres.txz"
}

build() {
	local parent folder artifact gomodule image context started
	image=$(ref "$1")
	if docker image inspect "$image" >/dev/null 2>&1; then return; fi
	recipe "$1"
	[ -z "$parent" ] || build "$parent"
	(
		flock 9
		if docker image inspect "$image" >/dev/null 2>&1; then exit; fi
		say "building $image"
		started=$SECONDS
		if [ "$1" = base ]; then
			build_base "$image"
		else
			context=$(mktemp -d)
			cp -R "$folder/." "$context"
			[ ! -e "$context/pom.xml" ] || fetch_maven "$context"
			[ -z "$artifact" ] || fetch_postgres "$context" "$artifact"
			[ -z "$gomodule" ] || GOBIN=$context GOFLAGS= GOWORK=off CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$gomodule" >&2
			DOCKER_BUILDKIT=0 docker build --network host --build-arg PARENT="$(ref "$parent")" -t "$image" "$context" >"$state/$1.log" 2>&1 || {
				tail -30 "$state/$1.log" >&2
				exit 1
			}
			rm -rf "$context"
		fi
		say "built $image in $((SECONDS - started)) s"
	) 9>"$state/$1.lock"
}

# everything builds what does not depend on each other side by side.
everything() {
	local name pids=() pid
	if [ "${RELAY_E2E_IMAGES:-auto}" != own ] && timeout 20 docker manifest inspect postgres:18.1 >/dev/null 2>&1; then
		say "official images can be pulled; there is nothing to build"
		return
	fi
	build base
	for name in $names; do
		build "$name" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid"; done
	say "all there"
}

case ${1:-} in
"") everything ;;
--list) echo "$names" ;;
--ref) shift; for name in "$@"; do ref "$name"; done ;;
*) for name in "$@"; do build "$name" && ref "$name"; done ;;
esac
