package inbox_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A program of your own can write to an inbox as the relay does. Publishing a
// message again changes nothing.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://app@localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	sink, err := inbox.Open(ctx, pool, inbox.Config{Table: "orders_inbox", Source: "importer"})
	if err != nil {
		log.Fatal(err) // names what is missing: the table, a column, a unique key, a privilege
	}
	defer sink.Close()

	batch := []relay.Message{{ID: "order:1", Subject: "order.created", Key: "customer:7", Row: []byte(`{"total": 12.50}`)}}
	if err := sink.Publish(ctx, batch); relay.IsPermanent(err) {
		fmt.Println("the table refuses the message:", err)
	}
	fmt.Println(sink.TakeDuplicates(), "messages were in the table already")
}
