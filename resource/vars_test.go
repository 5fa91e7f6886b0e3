package resource_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

func varsOf(t *testing.T, text string) *structpb.ListValue {
	t.Helper()
	list := &structpb.ListValue{}
	if err := protojson.Unmarshal([]byte(text), list); err != nil {
		t.Fatal(err)
	}
	return list
}

// show writes conditions in one line each way.
func show(conditions []resource.Condition) string {
	var parts []string
	for _, c := range conditions {
		switch {
		case c.Logic != "":
			parts = append(parts, c.Path+" "+c.Logic+"("+show(c.All)+")")
		case c.Negated:
			parts = append(parts, fmt.Sprintf("%s %s !%s %v", c.Path, c.Var, c.Op, c.Value.AsInterface()))
		default:
			parts = append(parts, fmt.Sprintf("%s %s %s %v", c.Path, c.Var, c.Op, c.Value.AsInterface()))
		}
	}
	return strings.Join(parts, "; ")
}

func TestVarsAreRead(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                                                          "",
		`[["arg_name","==","json"]]`:                                  "[0] arg_name == json",
		`[["http_x","!","~~","^v[0-9]"]]`:                             "[0] http_x !~~ ^v[0-9]",
		`[["arg_n",">",5],["arg_n","<=","7.5"]]`:                      "[0] arg_n > 5; [1] arg_n <= 7.5",
		`[["uri","in",["/a","/b"]]]`:                                  "[0] uri in [/a /b]",
		`[["post_arg.a[*].b","has","x"]]`:                             "[0] post_arg.a[*].b has x",
		`[["remote_addr","ipmatch","10.0.0.0/8"]]`:                    "[0] remote_addr ipmatch 10.0.0.0/8",
		`["OR",["a","==",true],["!AND",["b","~=",1],["c","~*","x"]]]`: " OR([1] a == true; [2] !AND([2][1] b ~= 1; [2][2] c ~* x))",
		`[["OR",["a","==",1],["b","==",1]],["c","==",1]]`:             "[0] OR([0][1] a == 1; [0][2] b == 1); [1] c == 1",
	} {
		conditions, problems := resource.ParseVars(varsOf(t, text))
		if len(problems) > 0 || show(conditions) != want {
			t.Errorf("%s\ngot  %s %v\nwant %s", text, show(conditions), problems, want)
		}
	}
	if conditions, problems := resource.ParseVars(nil); conditions != nil || problems != nil {
		t.Errorf("no vars are %v, %v", conditions, problems)
	}
}

func TestWhatIsWrongWithVars(t *testing.T) {
	for text, want := range map[string]string{
		`["arg_name","==","json"]`:           " invalid: vars is a list of conditions, each a list itself",
		`["AND"]`:                            " required: AND joins no conditions",
		`["and",["a","==",1]]`:               " invalid: vars is a list of conditions, each a list itself",
		`[5]`:                                "[0] type: a condition must be a list",
		`[[]]`:                               "[0] required: the condition is empty",
		`[[5,"==",1]]`:                       "[0][0] invalid: a condition begins with the name of a variable",
		`[["a b","==",1]]`:                   "[0][0] invalid: a condition begins with the name of a variable",
		`[["a"]]`:                            "[0] invalid: a condition has three parts, or four with `!`; this has 1",
		`[["a","!","=="]]`:                   "[0] invalid: a condition has three parts, or four with `!`; this has 3",
		`[["a","==",1,2]]`:                   "[0] invalid: a condition has three parts, or four with `!`; this has 4",
		`[["a","!=",1]]`:                     "[0][1] invalid: there is no such operator",
		`[["a","!","like",1]]`:               "[0][2] invalid: there is no such operator",
		`[["a","==",null]]`:                  "[0][2] type: `==` compares with a string, number or boolean",
		`[["a",">","x"]]`:                    "[0][2] type: `>` compares with a number",
		`[["a","~~","(?<x>a"]]`:              `[0][2] invalid: "(?<x>a" is not a regular expression: missing closing )`,
		`[["a","~~",5]]`:                     "[0][2] type: `~~` matches a regular expression, which is a string",
		`[["a","in","x"]]`:                   "[0][2] type: `in` needs a list of values",
		`[["a","in",[]]]`:                    "[0][2] type: `in` needs a list of values",
		`[["a","in",["x",[]]]]`:              "[0][2][1] type: a value must be a string, number or boolean",
		`[["a","ipmatch",["10.0.0.1","x"]]]`: "[0][2][1] invalid: this is neither an IP address nor a CIDR range",
		`[["OR",["a","==",1],["b"]]]`:        "[0][2] invalid: a condition has three parts, or four with `!`; this has 1",
	} {
		_, problems := resource.ParseVars(varsOf(t, text))
		if got := describe(problems); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", text, got, want)
		}
	}
}
