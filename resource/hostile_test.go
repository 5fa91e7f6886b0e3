package resource_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// lines is a text of n lines, each made by its number.
func lines(n int, line func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(line(i))
		b.WriteByte('\n')
	}
	return b.String()
}

func TestTextsOutOfProportionAreRefusedQuickly(t *testing.T) {
	for name, input := range map[string]string{
		"brackets":         strings.Repeat("[", 1<<14),
		"JSON brackets":    `{"a":` + strings.Repeat("[", 1<<14),
		"closed brackets":  strings.Repeat("[", 1000) + strings.Repeat("]", 1000),
		"braces":           strings.Repeat("{a: ", 1<<14),
		"dashes":           strings.Repeat("- ", 1<<14) + "a",
		"explicit keys":    strings.Repeat("? ", 1<<14) + "a",
		"indentation":      lines(1200, func(i int) string { return strings.Repeat(" ", i) + "a:" }),
		"dashes and lines": lines(60, func(i int) string { return strings.Repeat("  ", 90*i) + strings.Repeat("- ", 90) }),
		"tags":             "a: " + strings.Repeat("!!str ", 1<<14),
		"anchors":          "a: " + strings.Repeat("&a ", 1<<14),
		"aliases of aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + lines(12, func(i int) string {
			return fmt.Sprintf("a%d: &a%d [%s]", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 10), ","))
		}),
		"merges of merges":    "a0: &a0 {" + strings.TrimSuffix(strings.Repeat("x: 1, ", 10), ", ") + "}\n" + lines(200, func(i int) string { return fmt.Sprintf("a%d: &a%d {<<: *a%d, x%d: 1}", i+1, i+1, i, i) }),
		"an alias of itself":  "a: &a [*a]",
		"quotes":              strings.Repeat(`"`, 1<<14),
		"colons":              strings.Repeat(":", 1<<14),
		"many problems":       "services:\n" + lines(5_000, func(int) string { return "- 1" }),
		"many unknown fields": `{` + strings.TrimSuffix(lines(5_000, func(i int) string { return fmt.Sprintf(`"x%d": 1,`, i) }), ",\n") + `}`,
		"too large":           strings.Repeat(" ", 65<<20),
		"not UTF-8":           "services: \"\xff\"",
		"NUL":                 "\x00",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, problems := resource.DecodeFile("f", []byte(input))
			if len(problems) == 0 {
				t.Error("the text was accepted")
			}
			if len(problems) > 1001 {
				t.Errorf("%d problems", len(problems))
			}
			_, _, problems = resource.DecodeObject(musterv1.Kind_KIND_SERVICE, []byte(input))
			if len(problems) == 0 {
				t.Error("the text was accepted as an object")
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A text of one line has all its values on that line: places must not be
// counted from its beginning each time.
func TestLargeTextsAreReadInTimeProportionalToTheirSize(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"services":[`)
	for i := range 1000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":"s%d","upstream":{"nodes":[{"host":"10.0.0.1","port":80,"weight":1}]},"routes":[{"name":"r","uris":["/s%d/*"]}]}`, i, i)
	}
	b.WriteString(`]}`)
	start := time.Now()
	file, problems := resource.DecodeFile("f", []byte(b.String()))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if len(file.Resources) != 2000 {
		t.Fatalf("%d resources", len(file.Resources))
	}
	if problems := (resource.Validator{}).File(file, nil); len(problems) > 0 {
		t.Fatal(problems)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %v", took)
	}
	text, err := resource.EncodeFile(file.Resources)
	if err != nil {
		t.Fatal(err)
	}
	if _, problems := resource.DecodeFile("g", text); len(problems) > 0 {
		t.Fatal(problems)
	}
}

// A message may come over gRPC, where no text's bounds apply.
func TestMessagesPackedInEachOtherWithoutEndAreRefused(t *testing.T) {
	nested := func(levels int) *musterv1.Resource {
		packed := &anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}
		for range levels {
			body, err := proto.Marshal(packed)
			if err != nil {
				t.Fatal(err)
			}
			packed = &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.Any", Value: body}
		}
		return &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: "x", Resource: packed}}}
	}
	if problems := resource.Validate(nested(5)); len(problems) > 0 {
		t.Errorf("a few levels: %v", problems)
	}
	problems := resource.Validate(nested(500))
	if len(problems) != 1 || problems[0].Code != resource.CodeTooLarge || problems[0].Path != "resource" {
		t.Errorf("got %v", problems)
	}
}

func TestTextsThatATerminalWouldObeyAreRefused(t *testing.T) {
	node := &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "10.0.0.1", Port: 80}}}
	of := func(s *musterv1.Service) *musterv1.Resource {
		s.Id, s.Upstream = "s", node
		return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: s}}
	}
	for path, s := range map[string]*musterv1.Service{
		"name":     {Name: "a\x1b[2J"},
		"desc":     {Desc: "a\u009b2J"},
		"labels.k": {Labels: map[string]string{"k": "\x1b[2J"}},
	} {
		if problems := resource.Validate(of(s)); len(problems) != 1 || problems[0].Path != path || strings.Contains(problems.Error(), "\x1b") {
			t.Errorf("%s: got %q", path, problems.Error())
		}
	}
	if problems := resource.Validate(of(&musterv1.Service{Labels: map[string]string{"\x1b[2J": "v"}})); len(problems) != 1 || strings.Contains(problems.Error(), "\x1b") {
		t.Errorf("a label's name: got %q", problems.Error())
	}
	if problems := resource.Validate(of(&musterv1.Service{Name: "Pay – naïve 支付 👍", Desc: "two\nlines,\r\n\tand a tab"})); len(problems) != 0 {
		t.Errorf("harmless texts: got %v", problems)
	}
}
