package relaycmd

import "context"

func runCheck(context.Context, *program, []string) error   { return nil }
func runStatus(context.Context, *program, []string) error  { return nil }
func runPreview(context.Context, *program, []string) error { return nil }
func runReplay(context.Context, *program, []string) error  { return nil }
func runVerify(context.Context, *program, []string) error  { return nil }
