// Not one of the modules that make checks: where its requirements cannot be had, the
// others are measured without it. build.sh adds the rest.
module github.com/grove/pgtrickle-relay/e2e/peers/go-pq-cdc

go 1.26.0

require (
	github.com/Trendyol/go-pq-cdc v1.11.12
	github.com/Trendyol/go-pq-cdc-kafka v1.3.1
	github.com/segmentio/kafka-go v0.4.51
)
