package resource_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func object(t *testing.T, kind musterv1.Kind, text string) *musterv1.Resource {
	t.Helper()
	r, _, problems := resource.DecodeObject(kind, []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return r
}

func TestDiffNamesTheFieldsThatDiffer(t *testing.T) {
	route := musterv1.Kind_KIND_ROUTE
	before := object(t, route, `{"id":"r","name":"a","uris":["/a","/b"],"labels":{"a.b":"1","c":"2"},"create_time":1,"update_time":1,
		"upstream":{"nodes":[{"host":"h","port":80,"weight":1}]},"plugins":{"cors":{},"limit-count":{"count":1,"redis_password":"x"}},"priority":0}`)
	after := object(t, route, `{"id":"r","uris":["/a"],"labels":{"a.b":"3","d":"4"},"update_time":2,
		"upstream":{"nodes":[{"host":"h","port":80,"weight":2},{"host":"i"}]},"plugins":{"limit-count":{"count":1,"redis_password":"y"}},"timeout":{"read":5}}`)
	var got []string
	for _, d := range resource.DiffFields(before, after) {
		got = append(got, fmt.Sprintf("%s: %s -> %s", d.Path, d.Before, d.After))
	}
	want := []string{
		`name: "a" -> `,
		`labels["a.b"]: "1" -> "3"`,
		`labels.c: "2" -> `,
		`labels.d:  -> "4"`,
		`uris[1]: "/b" -> `,
		`priority: 0 -> `,
		`plugins.cors: {} -> `,
		`plugins.limit-count.redis_password: "***" -> "***"`,
		`upstream.nodes[0].weight: 1 -> 2`,
		`upstream.nodes[1].host:  -> "i"`,
		`timeout.read:  -> 5`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if diffs := resource.DiffFields(nil, after); len(diffs) == 0 || diffs[0] != (resource.FieldDiff{Path: "id", After: `"r"`}) {
		t.Errorf("got %v", diffs)
	}
	if diffs := resource.DiffFields(nil, nil); diffs != nil {
		t.Errorf("got %v", diffs)
	}
}

func TestDiffIsEmptyExactlyForEqualResources(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genResource().Draw(t, "a"), genResource().Draw(t, "b")
		if diffs := resource.DiffFields(a, proto.CloneOf(a)); len(diffs) > 0 {
			t.Fatalf("%v", diffs)
		}
		same := proto.Equal(byKey([]*musterv1.Resource{a})[resource.KeyOf(a).String()], byKey([]*musterv1.Resource{b})[resource.KeyOf(b).String()])
		diffs := resource.DiffFields(a, b)
		if resource.KeyOf(a).Kind == resource.KeyOf(b).Kind && same != (len(diffs) == 0) {
			t.Fatalf("equal: %v, diffs: %v", same, diffs)
		}
	})
}
