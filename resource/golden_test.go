package resource_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"

	_ "github.com/musterhq/muster/resource/xdstypes"
)

var update = flag.Bool("update", false, "write the expected output of golden files")

// now is when the tests take place.
var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// knownPlugins is a plugin set of three plugins.
type knownPlugins struct{}

func (knownPlugins) Check(plugin string, where resource.Where, config *structpb.Struct) resource.Problems {
	known := map[string][]string{
		"limit-count": {"count", "time_window", "rejected_code", "redis_password"},
		"key-auth":    {"header", "key"},
		"cors":        {"allow_origins"},
	}
	fields, found := known[plugin]
	if !found {
		return resource.Problems{{Code: resource.CodeUnknown, Message: fmt.Sprintf("there is no plugin %q", plugin)}}
	}
	var problems resource.Problems
	for name := range config.GetFields() {
		if !slices.Contains(fields, name) {
			problems = append(problems, resource.Problem{Path: resource.FieldPath(name), Code: resource.CodeUnknown, Message: "the plugin has no such field"})
		}
	}
	if plugin == "limit-count" && where != resource.WhereMetadata && config.GetFields()["count"].GetNumberValue() <= 0 {
		problems = append(problems, resource.Problem{Path: "count", Code: resource.CodeInvalid, Message: "count must be above 0"})
	}
	return problems
}

// Each file of testdata/golden holds a line `object <kind>` or `file`, an input,
// a line of dashes and what comes of it: the problems, or the canonical objects.
func TestGoldenFiles(t *testing.T) {
	paths, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			const rule = "\n----------\n"
			head, want, _ := strings.Cut(string(text), rule)
			directive, input, _ := strings.Cut(head, "\n")
			got := golden(t, strings.Fields(directive), []byte(input))
			if *update {
				if err := os.WriteFile(path, []byte(head+rule+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func golden(t *testing.T, directive []string, input []byte) string {
	validator := resource.Validator{Plugins: knownPlugins{}, Now: now}
	var problems resource.Problems
	var rs []*musterv1.Resource
	switch directive[0] {
	case "file":
		file, decoding := resource.DecodeFile("in.yaml", input)
		problems = decoding
		if file != nil {
			problems = append(problems, validator.File(file, nil)...)
			rs = file.Resources
		}
	case "object":
		kind, err := resource.ParseKind(directive[1])
		if err != nil {
			t.Fatal(err)
		}
		r, positions, decoding := resource.DecodeObject(kind, input)
		problems = decoding
		if len(problems) == 0 {
			problems = positions.Locate(validator.Resource(r))
		}
		rs = []*musterv1.Resource{r}
	default:
		t.Fatalf("unknown directive %q", directive)
	}
	var out bytes.Buffer
	if len(problems) > 0 {
		for _, p := range problems {
			fmt.Fprintf(&out, "[%s] %s\n", p.Code, p)
			if p.Excerpt != "" {
				fmt.Fprintf(&out, "%s\n", p.Excerpt)
			}
		}
		return out.String()
	}
	for _, r := range rs {
		text, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %s\n", resource.KeyOf(r), text)
	}
	if directive[0] == "file" {
		text, err := resource.EncodeFile(rs)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "\n%s", text)
	}
	return out.String()
}
