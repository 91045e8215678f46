package engine

// Used returns the bytes that all pipelines hold.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// LargeUsed returns the bytes that large messages hold.
func (b *Budget) LargeUsed() int64 {
	if b.large.TryAcquire(b.largeSize) {
		b.large.Release(b.largeSize)
		return 0
	}
	return b.largeSize
}
