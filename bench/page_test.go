package main

import (
	"os"
	"strings"
	"testing"
)

func TestWhatIsNotMeasuredAnewStaysOnThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	all := string(page)[strings.Index(string(page), "\n"+sectionStart)+1:]
	if got := earlier(string(page), nil); got != all {
		t.Errorf("nothing is measured anew, and left is\n%s", got)
	}
	got := earlier(string(page), map[string][]string{modeNames[0]: {"B5"}})
	plain, tls, _ := strings.Cut(got, "\n"+sectionStart)
	if strings.Contains(plain, "| B5") || !strings.Contains(plain, "| B1 |") || !strings.Contains(plain, "| B1 floor |") {
		t.Errorf("B5 is measured anew, and left is\n%s", plain)
	}
	if !strings.Contains(tls, "| B5 ") {
		t.Errorf("B5 is measured anew in plaintext, and of mutual TLS is left\n%s", tls)
	}
	alone := sectionStart + "2026-01-01; " + modeNames[0] + "\n\n| # | what |\n| --- | --- |\n| B5 | x |\n\n| target | got |\n| --- | --- |\n| B5 seconds | 1 |\n"
	if got := earlier("preface\n\n"+alone, map[string][]string{modeNames[0]: {"B5"}}); got != "" {
		t.Errorf("a section without rows is left: %q", got)
	}
}
