// Package reshape decides which rows of a pipeline travel, and in what form.
//
// [Columns] leaves out and masks columns before anything else sees a row. [JQ] then
// filters and transforms it: turn.go bounds its time, restrict.go its memory.
package reshape
