package compile_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/compile/plugin"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// Every file in testdata/golden is a declarative file; the .xds file beside it
// tells what it is compiled to, beyond what an empty group has, as JSON. The
// empty group's own is in empty.xds.
func TestFilesCompileToTheirGoldenXDS(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			compareGolden(t, strings.TrimSuffix(file, ".yaml")+".xds", compileFile(t, file))
		})
	}
}

func compareGolden(t *testing.T, golden, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; run with -rewrite if that is meant (-want +got):\n%s", golden, diff)
	}
}

// compileFile compiles a declarative file and prints the result.
func compileFile(t *testing.T, file string) string {
	t.Helper()
	base, _, _ := compile.Full(state.View{})
	view, changes := commitFile(t, file)
	if len(changes) == 0 {
		_, delta, problems := compile.Full(state.View{})
		return printed(t, delta, problems)
	}
	_, delta, problems := base.Next(view, changes)
	return printed(t, delta, problems)
}

// commitFile commits what a declarative file holds to an empty group.
func commitFile(t *testing.T, file string) (state.View, []state.Change) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	decoded, problems := resource.DecodeFile(file, data)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	validator := resource.Validator{Plugins: plugin.Set()}
	for _, r := range decoded.Resources {
		if problems := validator.Resource(r); len(problems) > 0 {
			t.Fatalf("%s: %v", resource.KeyOf(r), problems)
		}
	}
	if len(decoded.Resources) == 0 {
		return state.View{}, nil
	}
	return newStore(t).commit(decoded.Resources)
}

func printed(t *testing.T, delta compile.Delta, problems resource.Problems) string {
	t.Helper()
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	for _, k := range delta.Remove {
		fmt.Fprintf(&b, "removed %s %s\n", short(k.TypeURL), k.Name)
	}
	bare := 0
	for _, r := range delta.Upsert {
		if strings.HasPrefix(r.Name, "key-auth/") && len(r.Origins) == 0 {
			bare++
			continue
		}
		origins := make([]string, len(r.Origins))
		for i, o := range r.Origins {
			origins[i] = o.String()
		}
		fmt.Fprintf(&b, "== %s %s (%d bytes) of %s\n%s\n", short(r.TypeURL), r.Name, len(r.Body), strings.Join(origins, ", "), asJSON(t, r))
	}
	if bare > 0 {
		fmt.Fprintf(&b, "== %d shards without keys\n", bare)
	}
	return b.String()
}

// much is how many members of a list or map are too many to read.
const much = 20

// abridged leaves out of a list or map what is too much, and of the chooser of key
// shards, which nobody would read, everything but its beginning.
func abridged(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = abridged(v[i])
		}
		if len(v) > much || len(v) > 0 && isMatcher(v[0]) {
			return append(v[:1:1], fmt.Sprintf("and %d more", len(v)-1))
		}
	case map[string]any:
		names := slices.Sorted(maps.Keys(v))
		for i, name := range names {
			if i > 0 && len(names) > much {
				delete(v, name)
				v["~"] = fmt.Sprintf("and %d more", len(names)-1)
			} else {
				v[name] = abridged(v[name])
			}
		}
	}
	return v
}

func isMatcher(v any) bool {
	m, _ := v.(map[string]any)
	return m["on_match"] != nil
}

func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

func message(t testing.TB, r compile.Resource) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByURL(r.TypeURL)
	if err != nil {
		t.Fatal(err)
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(r.Body, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func asJSON(t *testing.T, r compile.Resource) string {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message(t, r))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	if b.Len() < 20_000 {
		return b.String()
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	short, err := json.MarshalIndent(abridged(v), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(short)
}
