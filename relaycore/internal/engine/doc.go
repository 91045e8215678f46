// Package engine moves the messages of one pipeline from its source to its sink.
// It knows neither SQL nor brokers. Retry, back-off, bisection, limits, parking,
// dead letters and checkpoints live here, once.
//
// Four goroutines overlap:
//
//	receive ─▶ encode or decode ─▶ publish ─▶ commit
//
// receive reads ahead, bounded in bytes. publish has one batch at the sink at a time.
// That keeps the order of a key when a message fails, as nothing behind it is in
// flight. So that this costs little, publish joins all that is ready into one batch.
// commit joins what is settled into checkpoints.
//
// A delivery is one batch on its way through publish. Its steps:
//
//	join          chunks that are ready become one batch
//	partition     messages that need no publishing are skipped, parked or dead-lettered
//	deliver       the sink is called, part by part, until nothing is left to publish
//	applyResult   what the sink reported is confirmed, dead-lettered or tried again
//	settle        the outcome goes to commit
//
// # What a crash costs
//
// Messages between the sink and the last checkpoint are delivered again. For a
// [relay.Resumer] the engine stores the sink's position with every checkpoint. When it
// starts, it reads the far end back from there, and skips the messages that arrived.
// The position must lie before everything that the checkpoint does not cover, so it
// moves only when a whole batch is settled.
//
// An error that [relay.IsUnknown] reports is treated in the same way. The engine reads
// the far end back from the last position before it publishes again.
package engine
