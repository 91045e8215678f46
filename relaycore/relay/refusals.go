package relay

import (
	"slices"
	"strings"
)

// Blame is the cause of a refusal: what has to change before the far end accepts a message.
type Blame string

// The causes.
const (
	BlameNothing     Blame = "passes"      // the far end recovers by itself; the relay retries
	BlameMessage     Blame = "message"     // this message; it becomes a dead letter
	BlameDestination Blame = "destination" // as BlameMessage if a row's field names it, else as BlamePipeline
	BlamePipeline    Blame = "pipeline"    // the configuration or the far end; the pipeline fails and is retried
)

// RefusalKind groups refusals, so that backends can be compared.
type RefusalKind string

// The kinds. Every backend has a row for each, if only to state why it cannot occur.
const (
	KindTooLarge    RefusalKind = "message too large"
	KindInvalid     RefusalKind = "message breaks a rule"
	KindBadName     RefusalKind = "name of the destination is invalid"
	KindMissing     RefusalKind = "destination does not exist"
	KindDenied      RefusalKind = "destination is denied"
	KindWrongType   RefusalKind = "destination has another form"
	KindFull        RefusalKind = "full, or over a quota"
	KindUnavailable RefusalKind = "not available at the moment"
	KindCredentials RefusalKind = "relay is not admitted"
	KindSetup       RefusalKind = "version or settings do not fit"
)

// RefusalKinds returns all kinds, in the order of the documentation.
func RefusalKinds() []RefusalKind {
	return []RefusalKind{
		KindTooLarge, KindInvalid, KindBadName, KindMissing, KindDenied, KindWrongType,
		KindFull, KindUnavailable, KindCredentials, KindSetup,
	}
}

// Refusal is a row of [Refusals].
type Refusal struct {
	Kind RefusalKind
	// Blame is empty where the far end has no such refusal. Then Note has the reason.
	Blame Blame
	// Answer is the far end's code or text: alternatives with | between, in which each *
	// stands for any text.
	Answer string
	// Note is the meaning of an answer that does not explain itself, for operators.
	Note string
}

// Answers returns the alternatives of r.Answer.
func (r Refusal) Answers() []string { return strings.Split(r.Answer, "|") }

// Refusals lists what a far end can answer instead of accepting a message. The first row
// that matches counts. An answer without a row passes by itself.
//
// A backend classifies by its table, and docs/refusals.md is made from it.
type Refusals []Refusal

// Find returns the row for answer, or a row that passes.
func (t Refusals) Find(answer string) Refusal {
	for _, r := range t {
		if r.Blame != "" && slices.ContainsFunc(r.Answers(), func(form string) bool { return matches(form, answer) }) {
			return r
		}
	}
	return Refusal{Kind: KindUnavailable, Blame: BlameNothing}
}

// Classify marks err with the class of answer. ofRow is true if a row's field names the
// destination; then the refusal of one destination is about the messages for it.
func (t Refusals) Classify(err error, answer string, ofRow bool) error {
	switch b := t.Find(answer).Blame; {
	case b == BlameMessage, b == BlameDestination && ofRow:
		return Permanent(err)
	case b == BlameDestination, b == BlamePipeline:
		return Fatal(err)
	}
	return err
}

// matches reports whether s has the form of pattern.
func matches(pattern, s string) bool {
	head, rest, more := strings.Cut(pattern, "*")
	s, found := strings.CutPrefix(s, head)
	for found && more {
		if head, rest, more = strings.Cut(rest, "*"); !more {
			return strings.HasSuffix(s, head)
		}
		_, s, found = strings.Cut(s, head)
	}
	return found && s == ""
}
