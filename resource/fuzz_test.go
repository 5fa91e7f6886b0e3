package resource_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// seeds adds the inputs of the golden files.
func seeds(f *testing.F, add func(directive []string, input []byte)) {
	paths, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		head, _, _ := strings.Cut(string(text), "\n----------\n")
		directive, input, _ := strings.Cut(head, "\n")
		add(strings.Fields(directive), []byte(input))
	}
}

// Whatever is read without problems is written and read back the same.
func FuzzDecodeObject(f *testing.F) {
	seeds(f, func(directive []string, input []byte) {
		if directive[0] == "object" {
			kind, err := resource.ParseKind(directive[1])
			if err != nil {
				f.Fatal(err)
			}
			f.Add(int32(kind), input)
		}
	})
	f.Fuzz(func(t *testing.T, kind int32, input []byte) {
		r, positions, problems := resource.DecodeObject(musterv1.Kind(kind), input)
		_ = problems.Error()
		_, _, _, _, _ = positions.At(resource.KeyOf(r), "upstream.nodes[0].host")
		if r == nil {
			if len(problems) == 0 {
				t.Fatal("neither resource nor problem")
			}
			return
		}
		positions.Locate(resource.Validator{Plugins: knownPlugins{}, Now: now}.Resource(r))
		resource.DiffFields(r, resource.Redact(r))
		text, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems) > 0 {
			return
		}
		back, _, problems := resource.DecodeObject(musterv1.Kind(kind), text)
		if len(problems) > 0 {
			t.Fatalf("%v\n%s", problems, text)
		}
		if !proto.Equal(r, back) {
			t.Fatalf("%s\n%s", cmp.Diff(r, back, protocmp.Transform()), text)
		}
	})
}

func FuzzDecodeFile(f *testing.F) {
	seeds(f, func(directive []string, input []byte) {
		if directive[0] == "file" {
			f.Add(input)
		}
	})
	f.Fuzz(func(t *testing.T, input []byte) {
		file, problems := resource.DecodeFile("f", input)
		_ = problems.Error()
		if file == nil {
			if len(problems) == 0 {
				t.Fatal("neither file nor problem")
			}
			return
		}
		found := resource.Validator{Plugins: knownPlugins{}, Now: now}.File(file, nil)
		if len(problems) > 0 || len(found) > 0 {
			return
		}
		text, err := resource.EncodeFile(file.Resources)
		if err != nil {
			t.Fatal(err)
		}
		back, problems := resource.DecodeFile("g", text)
		if len(problems) > 0 {
			t.Fatalf("%v\n%s", problems, text)
		}
		if diff := cmp.Diff(byKey(file.Resources), byKey(back.Resources), protocmp.Transform()); diff != "" {
			t.Fatalf("%s\n%s", diff, text)
		}
	})
}

// What comes over gRPC is no text and may be anything that a message can hold.
func FuzzValidate(f *testing.F) {
	seeds(f, func(directive []string, input []byte) {
		if directive[0] != "object" {
			return
		}
		kind, err := resource.ParseKind(directive[1])
		if err != nil {
			f.Fatal(err)
		}
		if r, _, _ := resource.DecodeObject(kind, input); r != nil {
			body, err := proto.Marshal(r)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(body)
		}
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := &musterv1.Resource{}
		// Fields of a later version are no part of the form that is compared here.
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, r); err != nil {
			return
		}
		problems := resource.Validator{Plugins: knownPlugins{}, Now: now}.Resource(r)
		resource.DiffFields(r, resource.Redact(r))
		resource.References(r)
		resource.Normalize(r)
		if len(problems) > 0 {
			return
		}
		text, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		back, _, problems := resource.DecodeObject(resource.KeyOf(r).Kind, text)
		if len(problems) > 0 {
			t.Fatalf("%v\n%s", problems, text)
		}
		if raw := r.GetXdsResource(); raw != nil {
			// A packed message has more than one encoding; ours is the deterministic one.
			return
		}
		if !proto.Equal(r, back) {
			t.Fatalf("%s\n%s", cmp.Diff(r, back, protocmp.Transform()), text)
		}
	})
}
