// Package webhookrelay is the relay's webhook backend: a sink that sends events
// to an HTTP endpoint, and a source that receives them.
//
// The sink sends through one [http.Transport], with HTTP/2 where an endpoint offers
// it over TLS. BenchmarkSink measures 0.94 of the rate of net/http's own client with
// the same headers, on two cores and with 16 requests at a time.
// It uses no proxy from the environment, because behind a proxy the check of
// addresses would see the proxy alone. That check refuses each address that IANA's
// special-purpose registries list, unless allow_private is set.
//
// # What an endpoint receives
//
//	part of the request                          what it holds
//	Idempotency-Key, webhook-id                  the message's id, the same for every attempt
//	webhook-timestamp                            seconds since 1970 at this attempt
//	webhook-signature                            v1,<base64 of HMAC-SHA256 over id.timestamp.body>, one for each secret
//	Pgtrickle-Op, -Outbox-Id, -Full-Refresh, -Key, -Subject   as every backend writes them
//	Content-Type, traceparent, further headers   the message's
//	body                                         the format's bytes
//
// A key or subject with a line break, or with a space at an end, comes in the form of
// RFC 8187. The name is Pgtrickle-Key*, and the value is UTF-8, two apostrophes and the
// percent-encoded key.
//
// In mode batch the body is a JSON array of the bodies, and Pgtrickle-Batch holds
// their number. The id is made from the ids of the events, and the headers are those
// of the first event. The events' own ids are in the bodies, except in the format
// payload.
//
// An endpoint may answer a batch with 2xx and results per event, in the order
// of the array or by id:
//
//	{"results": [{"id": "outbox_orders:5:0", "status": 200},
//	             {"id": "outbox_orders:5:1", "status": 422, "error": "no such customer"}]}
//
// Without ids there must be one result for each event. With ids, an event without a
// result is confirmed. status defaults to 200, or to 422 beside an error, and has the
// class of the same status of an answer. An id or a status may be a string or a
// number, an error any JSON. Results that cannot be read, or are in an answer of more
// than 4 MiB, confirm nothing. The sink then sends the array again, and the error
// describes the answer. Any other 2xx confirms all events. An endpoint that refuses an event
// must not accept later events of its key in the same array: the sink sends them again.
//
// # Delivery of the sink
//
// At least once: a 2xx confirms an event. A receiver drops duplicates by the id. The
// sink sends the events of one key one after the other, and stops a key at an event
// that fails. When the endpoint itself fails (no connection, no answer, 429, 502, 503,
// 504) the sink leaves the rest of the batch to the next attempt.
//
// # Errors of the sink
//
// docs/refusals.md lists the statuses and what the relay does with them. A status of
// retry_on_status is transient; Retry-After is honoured, up to an hour. So are no
// connection, a timeout and a failure of TLS. An address that is not public is fatal. A
// batch that is refused for one message is bisected.
//
// # Authentication of the source
//
//	auth               what must be right                                              the event's id
//	none               nothing but a JSON content type; restrict access otherwise      headers, else body
//	bearer             token in auth_header                                            headers, else body
//	hmac               hex of HMAC-SHA256 over the body, with or without "sha256="     body, as it is signed
//	standard-webhooks  webhook-signature over id.timestamp.body; svix-… will do        webhook-id, as it is signed
//	github             X-Hub-Signature-256                                             X-GitHub-Delivery, else body
//	stripe             Stripe-Signature over timestamp.body                            id in the body, as it is signed
//
// With timestamp_header, auth hmac signs TIME.BODY, and a request whose time is not
// within tolerance is refused. Without it, a copied request is an event that the inbox
// has already, as long as it keeps that event. GitHub signs no id: a copy with another
// X-GitHub-Delivery is another event.
//
// The headers for an id are, in this order, Pgtrickle-Dedup-Key, webhook-id,
// svix-id, Idempotency-Key, and ce-id with ce-source. In the body it is dedup_key of an
// envelope, id of a CloudEvent, or that of the relay's Debezium events. The id of a
// CloudEvent includes its source unless the relay made the event. An event of a batch
// takes the id in its own body, else that of the request with its index: "<id>:0".
//
// Of a sender that is no relay, an id in the headers counts at its path only: it becomes
// webhook:PATH:ID, unless id_scope is global.
//
// # Mapping of the source
//
//	message      from
//	ID           see above
//	Subject      Pgtrickle-Subject; github: X-GitHub-Event; stripe: type in the body; else path without its first slash
//	Key, Op      Pgtrickle-Key, Pgtrickle-Op
//	Time         webhook-timestamp, else the time of arrival
//	Headers      all others, in lower case, but for those of the connection, tokens, cookies and signatures
//	Origin       "webhook:" and the path
//
// # Delivery of the source
//
// The source answers a request with 200 and {"accepted": N} once all its events are
// in the inbox or stored as dead letters. After any other answer the sender must
// repeat the whole request with the same ids; the inbox stores no event twice. So
// each event of a sender that repeats until it gets a 2xx is stored exactly once, for
// as long as the inbox keeps it. A sender that waits for each answer keeps its order.
//
//	answer  cause
//	200     in the inbox
//	400     a JSON content type and no JSON, no id, an empty batch, one id twice in a batch
//	401     token or signature missing, wrong, or too old
//	404     no pipeline has this path
//	405     neither POST nor PUT
//	408     the body arrived too slowly: something every 5 seconds, and 64 KiB on average
//	409     an event with the same id and another body is on its way
//	413     larger than max_body, or a batch that does not fit into max_pending
//	415     a form, a Content-Encoding, or with auth none no JSON content type
//	429     max_pending is reached because the inbox is slower; Retry-After is set. Or bodies
//	        that are not verified yet use as much, most of it from this sender.
//	503     the pipeline stops or restarts, or the inbox took longer than ack_timeout; Retry-After is set
//
// The pipeline runs in one process at a time. With several processes, put a load
// balancer in front of them that connects to the process that listens.
//
// An address in use is transient: the process that owned the pipeline before may be
// about to stop. Any other address that the source cannot listen on, and a path of
// another pipeline, are fatal.
package webhookrelay
