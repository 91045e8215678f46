module github.com/grove/pgtrickle-relay/tools

go 1.26.0
