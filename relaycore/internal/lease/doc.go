// Package lease decides which process runs a pipeline.
//
// # Locks, and what they are worth
//
// A process holds all its locks on one connection, the session. A pipeline is
// owned by whoever holds pg_advisory_lock(hashtext(group), hashtext(pipeline)),
// where a reverse pipeline's name is preceded by "reverse:", because a forward
// one may bear the same name. Taking a lock raises the epoch in relay_cursors.
// All that an owner writes about its pipeline carries that epoch, so an owner
// that has lost its lock without knowing moves nothing.
//
//	           connect, register              lock free
//	(no session) ----------------> (session) -----------> (held, epoch n)
//	     ^                            |  ^                     |
//	     |   connection lost, or      |  |   fn returns        |
//	     +----------------------------+  +---------------------+
//	         beat unanswered: every held context is cancelled with ErrLost
//
// # Trust window
//
// The epoch does not keep two owners from publishing at the same time. Time
// does. The server gives a session's locks away when it sees the connection
// close, which for a killed process is at once, or when nothing has come from
// the client for serverPatience: by TCP keepalive where the machine or the
// network is gone, and by idle_session_timeout (PostgreSQL 14) where the process
// is stopped but its kernel still answers. Both are set on that very session.
//
// The session beats every [Config.Beat]. Each answer extends the trust until
// the moment the request was sent plus [Config.Trust], which is well below
// serverPatience. An owner stops when the trust ends, or as soon as the
// connection breaks; between beats the session waits in a read, so that it sees
// a close when it happens. No clocks are compared: both sides measure an
// interval, ours from before the server's.
//
// # Who should run what
//
// The beat lists the live instances: the rows of relay_instances whose own
// advisory lock is held. [Owner] picks one for each pipeline by rendezvous
// hashing over those that have the backend and are not draining. An instance
// that sees that it is no longer the owner drains the pipeline and lets go; the
// new owner tries the lock at every beat until it gets it.
package lease
