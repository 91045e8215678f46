package catalog

// Changes is the difference between two snapshots.
type Changes struct {
	Added   []Key // new, or enabled
	Removed []Key // deleted, or disabled
	Changed []Key // other configuration
}

// Empty reports whether nothing has changed.
func (c Changes) Empty() bool { return len(c.Added)+len(c.Removed)+len(c.Changed) == 0 }

// Diff compares the enabled pipelines of two snapshots, which are ordered by key. A
// pipeline that is disabled in both does not appear.
func Diff(before, after Snapshot) Changes {
	var c Changes
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch order := compareAt(before, i, after, j); {
		case order < 0:
			if before[i].Enabled {
				c.Removed = append(c.Removed, before[i].Key)
			}
			i++
		case order > 0:
			if after[j].Enabled {
				c.Added = append(c.Added, after[j].Key)
			}
			j++
		default:
			was, is := before[i], after[j]
			switch {
			case was.Enabled && !is.Enabled:
				c.Removed = append(c.Removed, is.Key)
			case !was.Enabled && is.Enabled:
				c.Added = append(c.Added, is.Key)
			case is.Enabled && was.Revision != is.Revision:
				c.Changed = append(c.Changed, is.Key)
			}
			i, j = i+1, j+1
		}
	}
	return c
}

func compareAt(before Snapshot, i int, after Snapshot, j int) int {
	switch {
	case i == len(before):
		return 1
	case j == len(after):
		return -1
	}
	return before[i].Compare(after[j].Key)
}
