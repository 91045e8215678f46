// Package engine moves the messages of one pipeline from its source to its sink.
// It knows neither SQL nor brokers. Retry, back-off, bisection, limits, parking,
// dead letters and checkpoints live here, once.
//
// Four goroutines overlap:
//
//	receive ─▶ encode or decode ─▶ publish ─▶ commit
//
// receive reads ahead, bounded in bytes. publish has one batch at
// the sink at a time, which is what keeps the order of a key when a message
// fails: nothing behind it is in flight. It makes up for that by taking all that
// is ready as one batch. commit coalesces what is settled into checkpoints.
//
// # What a crash costs
//
// Whatever is between the sink and the last checkpoint is delivered again. For a
// [relay.Resumer] the engine stores the sink's position with every checkpoint
// and reads the far end back from there when it starts, so that it skips what
// arrived. For that to be exact the position must lie before everything that the
// checkpoint does not cover: it moves only when a whole batch is settled.
package engine
