package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// sectionStart begins each section of the page: the rows of one run in one mode.
const sectionStart = "Measured "

// earlier returns the sections of a page that was written before, without the rows
// and targets of what was measured anew: ids by mode. Each row so stays beside the
// date and machine that it is of.
func earlier(page string, measured map[string][]string) string {
	at := strings.Index(page, "\n"+sectionStart)
	if at < 0 {
		return ""
	}
	var out strings.Builder
	for _, section := range strings.SplitAfter(page[at+1:], "\n"+sectionStart) {
		// What SplitAfter leaves at the end begins the next.
		section = sectionStart + strings.TrimPrefix(strings.TrimSuffix(section, sectionStart), sectionStart)
		head, _, _ := strings.Cut(section, "\n")
		var ids []string
		for mode, of := range measured {
			if strings.Contains(head, mode) {
				ids = of
			}
		}
		rows := 0
		var kept []string
		for _, line := range strings.Split(section, "\n") {
			id, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " ")
			row := strings.HasPrefix(line, "| ") && !slices.Contains([]string{"#", "target", "---", "package"}, id)
			if row && slices.Contains(ids, id) {
				continue
			}
			if row {
				rows++
			}
			kept = append(kept, line)
		}
		if rows > 0 {
			out.WriteString(strings.Join(kept, "\n"))
		}
	}
	return out.String()
}

// pageBefore is the page in a file; none is an empty one.
func pageBefore(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}
