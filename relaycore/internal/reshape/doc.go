// Package reshape decides which rows of a pipeline travel, and in what form.
//
// [Columns] leaves out and masks columns before anything else sees a row.
package reshape
