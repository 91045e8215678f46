// Package codec turns rows into bodies on the way out ([Encoder]) and bodies
// into rows on the way in ([Decoder]). What one relay's encoder wrote, another's
// decoder reads back with the same id, key, subject, op and row.
package codec
