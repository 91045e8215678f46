// Package lease decides which process runs a pipeline.
//
// # Locks
//
// A process holds all its locks on one connection, the session. The owner of a
// pipeline is the process that holds its advisory lock. Taking the lock raises the
// epoch in relay_cursors. Every write of an owner carries that epoch. An owner that
// lost its lock without noticing therefore changes nothing.
//
//	           connect, register              lock is free
//	(no session) ----------------> (session) -------------> (held, epoch n)
//	     ^                            |  ^                       |
//	     |   connection lost, or      |  |     fn returns        |
//	     +----------------------------+  +-----------------------+
//	         beat unanswered: every held context is cancelled with ErrLost
//
// # Trust window
//
// The epoch does not keep two owners from publishing at the same time. Time does:
//
//  1. The server releases the locks of a session when it sees the connection close.
//     For a killed process that is at once.
//  2. It also releases them when it has received nothing for serverPatience. TCP
//     keepalive detects a machine or a network that is gone. idle_session_timeout
//     (PostgreSQL 14) detects a suspended process, whose kernel still answers. The
//     session sets both on the server.
//  3. The session beats every [Config.Beat]. Each answer extends the trust to the time
//     when the request was sent, plus [Config.Trust]. That is well below serverPatience.
//  4. An owner stops when the trust ends, or as soon as the connection breaks. Between
//     two beats the session waits in a read, so that it sees a close when it happens.
//
// No clocks are compared. Both sides measure an interval, and the client's begins
// before the server's.
//
// # Owners
//
// A beat returns the live instances: the rows of relay_instances whose advisory lock
// is held. [Assign] picks one for each pipeline from them and the last owners in
// relay_cursors. An instance that is no longer the owner drains the pipeline and
// releases the lock. The new owner tries the lock several times a second until it gets it.
package lease
