package sqsrelay

import (
	"regexp"
	"strings"
	"testing"
)

// TestAttributeNames compares the check with the rule as SQS states it.
func TestAttributeNames(t *testing.T) {
	rule := regexp.MustCompile(`^[\w-]+(\.[\w-]+)*$`)
	reserved := regexp.MustCompile(`(?i)^(aws|amazon)\.`)
	long := strings.Repeat("n", 256)
	names := []string{"", long, long + "n", "aws", "aws.x", "AWS.x", "awsx", "Amazon.x", "amazon", "my.aws.x"}
	pieces := []string{"a", "Z", "9", "_", "-", ".", " ", "é", "\x00", "/"}
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range pieces {
				names = append(names, a, a+b, a+b+c, a+b+c+a)
			}
		}
	}
	for _, name := range names {
		want := len(name) <= 256 && rule.MatchString(name) && !reserved.MatchString(name)
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %v, want %v", name, got, want)
		}
	}
}
