package budget

import "fmt"

// TooLargeError is the error of a message that goes no further, because it is
// larger than the process's memory, or the pipeline's configuration, allows.
type TooLargeError struct {
	What        string // such as "row 7 of public.outbox_orders"
	Length, Max int64  // bytes
	By, Cure    string // what allows Max, and what to do
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s has %d bytes, and %s allows %d: %s, then retry", e.What, e.Length, e.By, e.Max, e.Cure)
}

// TooLargeForMemory returns the error for the memory's bound.
func TooLargeForMemory(what string, length, most int64) error {
	return &TooLargeError{what, length, most, "the relay's memory", "give it more memory"}
}

// ClassTooLarge is the class of dead letters with a [TooLargeError].
const ClassTooLarge = "too_large"

// Class is that of the dead letter.
func (e *TooLargeError) Class() string { return ClassTooLarge }
