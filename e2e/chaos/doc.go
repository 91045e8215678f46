// Package chaos breaks everything at random while writers write, and counts what
// was lost, duplicated or reordered.
//
//	make chaos                                   every backend, both ways
//	CHAOS_SEED=7 CHAOS_BACKENDS=nats make chaos  the same schedule again, one backend
//	CHAOS_MINUTES=30 CHAOS_KILLS=500 make chaos  the long form
//
// What the relay reads is deleted, created again and trimmed, too. Then a message may be
// lost, but the relay's log has to name its stream, topic, queue or file.
//
// CHAOS_WRITE=1 writes the table into docs/guarantees.md. A seed fixes what is
// done to which process, when, and what is written; how the processes interleave is the
// machine's own doing.
package chaos
