package resource

import (
	"fmt"
	"slices"
	"strings"
)

// suggestion returns a hint that names what was probably meant, and "" when
// none of the names is like it.
func suggestion(given string, names []string) string {
	if name := nearest(given, names); name != "" {
		return fmt.Sprintf("did you mean %q?", name)
	}
	return ""
}

// nearest returns the name most like the given one: the same but for case and
// separators, or few edits away. Of equals it is the first by order of text.
func nearest(given string, names []string) string {
	if len(given) > 64 {
		return ""
	}
	names = slices.Clone(names)
	slices.Sort(names)
	fold := func(s string) string {
		return strings.NewReplacer("_", "", "-", "", ".", "").Replace(strings.ToLower(s))
	}
	best, bestDistance := "", 1+max(1, len(given)/3)
	folded := fold(given)
	for _, name := range names {
		if len(name) > 64 {
			continue
		}
		other := fold(name)
		distance := editDistance(folded, other)
		if other == folded+"s" || folded == other+"s" {
			distance = min(distance, 1)
		}
		if distance < bestDistance {
			best, bestDistance = name, distance
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that make b of a.
func editDistance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
