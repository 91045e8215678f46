// Package webhookrelay is the relay's webhook backend: a sink that sends events
// to an HTTP endpoint, and a source that receives them.
//
// # Keys of the sink
//
// Written flat with the prefix webhook_, or nested inside "sink". Keys marked °
// take the variables of subject_template.
//
//	key               default   meaning
//	url °             required  http or https; variables stand in the path and the query only, and their values are
//	                            escaped, so no row decides to whom a request goes; user:password@ is basic authentication
//	method            POST      POST, PUT or PATCH
//	headers °         {}        further headers; they win over the pipeline's own headers
//	mode              event     event: a request each; batch: a JSON array of many
//	batch_mode        false     true is another way to say mode batch
//	batch_messages    1000      mode batch: most events in a request
//	batch_bytes       1 MiB     mode batch: most bytes in a body; a larger event goes alone
//	concurrency       16        mode event: requests at a time, across keys; mode batch sends one request at a time
//	timeout           10s       for one request, until its answer has been read
//	retry_on_status   408 429 500 502 503 504   answers that are tried again
//	signing_secret    none      Standard Webhooks secrets; several give several signatures; whsec_ is followed by base64,
//	                            anything else is the secret itself
//	allow_private     false     send to loopback, private, link-local and other addresses that are not public
//	follow_redirects  false     follow 307 and 308, five at most, never from https to http
//	tls_ca            system's  PEM file with the authorities to trust
//	tls_cert          none      PEM file with the client's certificate
//	tls_key           none      PEM file with its key
//
// Connections are kept open, and are HTTP/2 where the endpoint offers it over
// TLS. Proxies of the environment are not used: behind one, the check of
// addresses would see the proxy's only.
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
// A key or subject that cannot be a header's value, because of a line break or a
// space at an end, comes as Pgtrickle-Key* in the form of RFC 8187: UTF-8, two
// apostrophes, and the value
// percent-encoded.
//
// In mode batch the body is a JSON array of the bodies, Pgtrickle-Batch says how
// many, and the id is one of the batch, made from the ids in it. The events' own
// ids are in the bodies, which the format payload does not have. The headers are
// those of the first event.
//
// An endpoint may answer a batch with 2xx and results per event, in the order
// of the array or by id:
//
//	{"results": [{"id": "outbox_orders:5:0", "status": 200},
//	             {"id": "outbox_orders:5:1", "status": 422, "error": "no such customer"}]}
//
// Results without ids must be as many as the events; with ids, an event that is
// not among them is confirmed. status defaults to 200, or to 422 beside an error,
// and is classified like an answer's. An id or a status may be a string or a
// number, an error any JSON. results that cannot be read, and those of an answer
// of more than 4 MiB, confirm nothing: the array is sent again, and the error says
// what is wrong with the answer. Any other 2xx confirms all. Of a key of which it
// refuses an event, the endpoint must not take later ones of the same array: they
// are sent again.
//
// # Delivery of the sink
//
// At least once: an event is confirmed by a 2xx. A receiver drops duplicates by
// the id. Events of one key are sent one after the other, and not past one that
// fails. When the endpoint itself fails (no connection, no answer, 429, 502, 503,
// 504) the sink stops there and leaves the rest of the batch to the next attempt.
//
//	answer                                     class
//	2xx                                        confirmed
//	in retry_on_status                         transient; Retry-After is honoured, up to an hour
//	no connection, timeout, TLS failure        transient
//	an address that is not public              fatal
//	3xx                                        fatal
//	401, 403, 407                              fatal: refused
//	404, 410                                   fatal: no endpoint (any more); permanent where url has variables
//	405, 415, 501, 505                         fatal: not with this method or kind of body
//	other 4xx                                  permanent for the message; a batch is bisected
//	500, 502, 503, 504, taken off the list     permanent for the message
//	other 5xx                                  transient
//
// # Keys of the source
//
// Written flat with the prefix webhook_, or nested inside "source".
//
//	key               default              meaning
//	bind              0.0.0.0:8080         address to listen on (also: listen_addr); pipelines of a process share it
//	path              /events              path that belongs to this pipeline
//	max_body          1 MiB                largest body (also: max_body_bytes)
//	max_pending       16 MiB               bytes that may wait for the inbox, bodies and 1 KiB for each event, before
//	                                       requests get 429; at least 1 KiB more than max_body
//	auth              none                 none, bearer, hmac, standard-webhooks, github or stripe; see below
//	secret            required by auth     one or, for rotation, several (also: auth_value)
//	auth_header       Authorization        auth bearer: header with the token, with or without "Bearer "
//	signature_header  X-Webhook-Signature  auth hmac: header with the signature
//	tolerance         5m                   standard-webhooks, stripe: how far the timestamp may be from our clock
//	on_missing_id     refuse               refuse: answer 400; hash: the hash of the body is the id
//	split_arrays      true                 a JSON array is a batch of events; false: it is one event
//	ack_timeout       30s                  how long a request waits for the inbox
//	tls_cert          none                 PEM file with the server's certificate: TLS and HTTP/2
//	tls_key           none                 PEM file with its key
//	client_ca         none                 PEM file with the authorities of clients, which then must have a certificate
//
// Pipelines that share an address must agree on tls_cert, tls_key and client_ca.
//
//	auth               what must be right                                              the event's id
//	none               nothing; keep strangers out by other means                      headers, else body
//	bearer             token in auth_header                                            headers, else body
//	hmac               hex of HMAC-SHA256 over the body, with or without "sha256="     headers, else body
//	standard-webhooks  webhook-signature over id.timestamp.body; svix-… will do        webhook-id, as it is signed
//	github             X-Hub-Signature-256                                             X-GitHub-Delivery, else body
//	stripe             Stripe-Signature over timestamp.body                            id in the body, as it is signed
//
// The headers for an id are, in this order, Pgtrickle-Dedup-Key, webhook-id,
// svix-id, Idempotency-Key, and ce-id with ce-source. In the body it is
// dedup_key of an envelope, id of a CloudEvent (with source, unless the event is
// one of ours), or that of our Debezium events. An event of a batch takes the id
// in its own body, else that of the request with its index: "<id>:0".
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
// A request is answered with 200 and {"accepted": N} when all its events are in
// the inbox (or stored as dead letters), not sooner. It is all or nothing: with
// any other answer the sender must repeat the whole request, under the same ids;
// what had been stored is not stored twice. So a sender that repeats until it is
// answered with 2xx gets its events in exactly once, for as long as the inbox
// keeps them. Order is kept for a sender that waits for each answer.
//
//	answer  cause
//	200     in the inbox
//	400     a JSON content type and no JSON, no id, an empty batch, one id twice in a batch
//	401     token or signature missing, wrong, or too old
//	404     no pipeline has this path
//	405     neither POST nor PUT
//	409     an event with the same id and another body is on its way
//	413     larger than max_body, or a batch of so many events that max_pending never has room for it
//	415     a form, or a Content-Encoding
//	429     max_pending is reached: the inbox does not keep up; Retry-After is set
//	503     the pipeline stops or restarts, or the inbox took longer than ack_timeout; Retry-After is set
//
// The pipeline runs in one process at a time. Where several share the work, put a
// load balancer in front that passes on to those that accept connections.
//
// An address that is taken is tried again, for the predecessor may be about to
// go. One that cannot be listened on, and a path of another pipeline, are fatal.
package webhookrelay
