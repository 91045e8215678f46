package relaynet

import "bytes"

// Lines checks a protocol of lines, of which some announce bytes that follow. Its Check is
// the check of a [Guard]. A client that meets another form than Lines allows could take the
// middle of a message for a line.
type Lines struct {
	Peer Peer
	Max  int // bytes of a line
	// Take gets a line with its end, or the beginning of one that is not whole. It returns
	// the number of bytes that follow a whole line, with a CR LF behind them, or -1 for
	// none. It must not keep the line.
	Take func(line []byte, whole bool) (follow int, err error)

	line   []byte // the beginning of a line whose end is yet to come
	follow int    // bytes that are yet to come
	end    int    // bytes of the CR LF behind them
}

// Check goes through the next bytes of the peer.
func (l *Lines) Check(p []byte) error {
	for len(p) > 0 {
		switch {
		case l.follow > 0:
			n := min(l.follow, len(p))
			p, l.follow = p[n:], l.follow-n
		case l.end > 0:
			if p[0] != "\r\n"[2-l.end] {
				return l.Peer.Errorf("it sent a value of another length than it announced")
			}
			p, l.end = p[1:], l.end-1
		default:
			n, whole := bytes.IndexByte(p, '\n')+1, true
			if n == 0 {
				n, whole = len(p), false
			}
			l.line = append(l.line, p[:n]...)
			p = p[n:]
			follow, err := l.Take(l.line, whole)
			if err != nil {
				return err
			}
			if len(l.line) > l.Max {
				return l.Peer.Errorf("it sent a line of more than %d KiB", l.Max>>10)
			}
			if !whole {
				return nil
			}
			l.line = l.line[:0]
			if follow >= 0 {
				l.follow, l.end = follow, len("\r\n")
			}
		}
	}
	return nil
}

// Between reports whether a line begins with the next byte.
func (l *Lines) Between() bool { return len(l.line) == 0 && l.follow == 0 && l.end == 0 }
