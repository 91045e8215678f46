module github.com/grove/pgtrickle-relay/demo

go 1.26.0
