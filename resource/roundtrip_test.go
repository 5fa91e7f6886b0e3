package resource_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func TestAnObjectReadsBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genResource().Draw(t, "resource")
		text, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(text) {
			t.Fatalf("not JSON: %s", text)
		}
		inYAML, err := resource.Encoder{}.ObjectYAML(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{text, inYAML} {
			back, _, problems := resource.DecodeObject(resource.KeyOf(r).Kind, form)
			if len(problems) > 0 {
				t.Fatalf("%v\n%s", problems, form)
			}
			if diff := cmp.Diff(r, back, protocmp.Transform()); diff != "" {
				t.Fatalf("%s\n%s", diff, form)
			}
		}
	})
}

func TestNormalizeIsIdempotentAndEncodingIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genResource().Draw(t, "resource")
		again := proto.CloneOf(r)
		resource.Normalize(again)
		if !proto.Equal(r, again) {
			t.Fatalf("%v became %v", r, again)
		}
		first, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		second, err := resource.EncodeObject(proto.CloneOf(r))
		if err != nil || string(first) != string(second) {
			t.Fatalf("%s\n%s\n%v", first, second, err)
		}
	})
}

// genGroup is a set of resources as a group may hold them: ids are valid and
// unique, and what nests has a parent of its type.
func genGroup() *rapid.Generator[[]*musterv1.Resource] {
	return rapid.Custom(func(t *rapid.T) []*musterv1.Resource {
		var rs []*musterv1.Resource
		seen := map[resource.Key]bool{}
		isStream := map[string]bool{}
		id := func(names ...string) string {
			if last := names[len(names)-1]; last != "" && rapid.Bool().Draw(t, "generated") {
				return resource.GeneratedID(names...)
			}
			return rapid.StringMatching(`[a-z0-9]{1,6}`).Draw(t, "id")
		}
		serviceName := map[string]string{"": ""}
		services := []string{""}
		for _, r := range rapid.SliceOfN(genResource(), 0, 8).Draw(t, "resources") {
			var parent string
			switch {
			case r.GetService() != nil:
				s := r.GetService()
				s.Id = id(s.GetName())
				s.Type = rapid.SampledFrom([]string{"", "stream"}).Draw(t, "type")
				for i, u := range s.GetUpstreams() {
					if u.GetId() == "" {
						u.Id = fmt.Sprint("u", i)
					}
				}
				isStream[s.Id] = s.Type == "stream"
				serviceName[s.Id] = s.GetName()
				if s.GetName() == "" {
					serviceName[s.Id] = s.Id
				}
				services = append(services, s.Id)
			case r.GetRoute() != nil:
				parent = rapid.SampledFrom(services).Draw(t, "service")
				if isStream[parent] {
					parent = ""
				}
				r.GetRoute().ServiceId = parent
				r.GetRoute().Id = id(serviceName[parent], r.GetRoute().GetName())
			case r.GetStreamRoute() != nil:
				parent = rapid.SampledFrom(services).Draw(t, "service")
				if !isStream[parent] {
					parent = ""
				}
				r.GetStreamRoute().ServiceId = parent
				r.GetStreamRoute().Id = id(serviceName[parent], r.GetStreamRoute().GetName())
			case r.GetConsumer() != nil:
				r.GetConsumer().Username = id("")
			case r.GetCredential() != nil:
				r.GetCredential().Consumer = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "consumer")
				r.GetCredential().Id = id(r.GetCredential().GetConsumer(), r.GetCredential().GetName())
			case r.GetSsl() != nil:
				r.GetSsl().Id = id("")
			case r.GetGlobalRule() != nil:
				r.GetGlobalRule().Id = id("")
			case r.GetPluginMetadata() != nil:
				r.GetPluginMetadata().Id = id("")
			case r.GetXdsResource() != nil:
				r.GetXdsResource().Id = id("")
			}
			if key := resource.KeyOf(r); !seen[key] {
				seen[key] = true
				rs = append(rs, r)
			}
		}
		return rs
	})
}

func TestAFileReadsBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := genGroup().Draw(t, "group")
		text, err := resource.EncodeFile(rs)
		if err != nil {
			t.Fatal(err)
		}
		file, problems := resource.DecodeFile("f.yaml", text)
		if len(problems) > 0 {
			t.Fatalf("%v\n%s", problems, text)
		}
		if diff := cmp.Diff(byKey(rs), byKey(file.Resources), protocmp.Transform()); diff != "" {
			t.Fatalf("%s\n%s", diff, text)
		}
	})
}

// byKey indexes resources without the times, which files do not have.
func byKey(rs []*musterv1.Resource) map[string]*musterv1.Resource {
	out := map[string]*musterv1.Resource{}
	for _, r := range rs {
		r = proto.CloneOf(r)
		m := r.ProtoReflect()
		body := m.Get(m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))).Message()
		for _, name := range []string{"create_time", "update_time"} {
			if fd := body.Descriptor().Fields().ByTextName(name); fd != nil {
				body.Clear(fd)
			}
		}
		out[resource.KeyOf(r).String()] = r
	}
	return out
}
