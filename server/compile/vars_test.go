package compile

import (
	"regexp"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// A negated condition on a query parameter is looked for in the whole path; it
// must find exactly what the parameter's value says.
func TestANegatedQueryConditionLooksAtItsParameterOnly(t *testing.T) {
	regexes := []string{`a`, `^a`, `a$`, `^a.c$`, `.`, `[^b]`, `a|b`, `(ab)+`, `^$`, `\d{2}`, `(?i)AB`, `a.*b`}
	rapid.Check(t, func(t *rapid.T) {
		regex := rapid.SampledFrom(regexes).Draw(t, "regex")
		value := rapid.StringMatching(`[abcAB12=?]{0,4}`).Draw(t, "value")
		before := rapid.SampledFrom([]string{"", "x=abc&", "xq=a&", "q2=12&"}).Draw(t, "before")
		after := rapid.SampledFrom([]string{"", "&z=abc12", "&"}).Draw(t, "after")
		list := &structpb.ListValue{Values: []*structpb.Value{structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewStringValue("arg_q"), structpb.NewStringValue("!"), structpb.NewStringValue("~~"), structpb.NewStringValue(regex),
		}})}}
		c, problems := conditionsOf(&musterv1.Route{Vars: list})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		h := c.headers[0]
		if h.GetName() != ":path" || !h.GetInvertMatch() || c.n != 1 {
			t.Fatalf("%v", h)
		}
		path := "/p?" + before + "q=" + value + after
		whole := regexp.MustCompile(`^(?:` + h.GetStringMatch().GetSafeRegex().GetRegex() + `)$`)
		if got, want := whole.MatchString(path), regexp.MustCompile(regex).MatchString(value); got != want {
			t.Errorf("%q in %q is %v, want %v by %s", regex, path, got, want, whole)
		}
		for _, without := range []string{"/p", "/q=" + value, "/p?", "/p?x=" + value} {
			if whole.MatchString(without) {
				t.Errorf("%s matches %q, where the parameter is not", whole, without)
			}
		}
	})
}

// The path without its query is found in Envoy's one header for both.
func TestAConditionOnTheURILooksAtThePathOnly(t *testing.T) {
	for _, c := range []struct {
		op, value, path string
		want            bool
	}{
		{"==", "/a", "/a", true},
		{"==", "/a", "/a?x=1", true},
		{"==", "/a", "/ab", false},
		{"==", "/a.c", "/abc", false},
		{"~~", "^/a", "/ab?x", true},
		{"~~", "x$", "/a?x", false},
		{"~~", "b", "/a?b", false},
		{"~~", "^/a/[0-9]+$", "/a/12?b=1", true},
		{"~*", "^/A", "/ab", true},
	} {
		list := &structpb.ListValue{Values: []*structpb.Value{structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewStringValue("uri"), structpb.NewStringValue(c.op), structpb.NewStringValue(c.value),
		}})}}
		conditions, problems := conditionsOf(&musterv1.Route{Vars: list})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		whole := regexp.MustCompile(`^(?:` + conditions.headers[0].GetStringMatch().GetSafeRegex().GetRegex() + `)$`)
		if got := whole.MatchString(c.path); got != c.want {
			t.Errorf("uri %s %s: %q is %v by %s", c.op, c.value, c.path, got, whole)
		}
	}
}
