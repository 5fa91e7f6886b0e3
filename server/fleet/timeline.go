package fleet

import (
	"sort"
	"time"
)

// timelineLimit bounds how many publications of a group are remembered. A data
// plane further behind than that has at least the lag of the oldest.
const timelineLimit = 512

// timeline remembers when the newest versions of a group were published, so
// that the lag of a data plane can be told.
type timeline struct {
	entries []publication // ascending by version
}

type publication struct {
	version Version
	at      time.Time
}

func (t *timeline) add(v Version, at time.Time) {
	if n := len(t.entries); n > 0 && !t.entries[n-1].version.Less(v) {
		return
	}
	if len(t.entries) == timelineLimit {
		// Half at a time, so that adding stays O(1) on average.
		t.entries = append(t.entries[:0], t.entries[timelineLimit/2:]...)
	}
	t.entries = append(t.entries, publication{v, at})
}

// since returns when the first version above v was published.
func (t *timeline) since(v Version) (time.Time, bool) {
	i := sort.Search(len(t.entries), func(i int) bool { return v.Less(t.entries[i].version) })
	if i == len(t.entries) {
		return time.Time{}, false
	}
	return t.entries[i].at, true
}
