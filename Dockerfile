# One relay binary in an image of its own:
#
#   docker build --build-arg BINARY=relay-nats -t relay-nats .
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg BINARY=relay-all .
#
# BINARY is a module folder; relay-all has every backend. `make images` builds
# all of them, also where no golang image can be pulled.
FROM --platform=$BUILDPLATFORM golang:1.26-trixie@sha256:4ee9ffa999b4583ce281939cdff828763083610292f252279a0cee77473bd9a7 AS build
ARG BINARY=relay-all
ARG TARGETOS=linux
ARG TARGETARCH
ARG LDFLAGS="-s -w"
ARG VERSION=dev
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    cd "${BINARY}" && \
    GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -ldflags "${LDFLAGS} -X github.com/grove/pgtrickle-relay/relaycore/relaycmd.version=${VERSION}" -o /out/relay .
RUN mkdir -p /out/etc/ssl/certs && \
    cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ && \
    echo 'relay:x:65532:65532:relay:/:/nonexistent' >/out/etc/passwd

# ---- from here on deploy/images.sh uses this file too, with its own /out ----
FROM scratch
ARG BINARY=relay-all
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="${BINARY}" \
      org.opencontainers.image.description="Moves events between PostgreSQL outbox and inbox tables and message brokers" \
      org.opencontainers.image.source="https://github.com/grove/pgtrickle-relay" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out /
USER 65532:65532
EXPOSE 9090
STOPSIGNAL SIGTERM
# Not /health, which is 503 while a broker is away: who replaces unhealthy
# containers would restart the relay for that, and a restart cures no broker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/relay", "healthcheck", "--live"]
ENTRYPOINT ["/relay"]
