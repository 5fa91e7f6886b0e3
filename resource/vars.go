package resource

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
)

// Condition is one condition of a route's `vars`: a comparison, or conditions
// joined by a word.
type Condition struct {
	// Path is where the condition stands in vars, `[2]`; empty for the whole.
	Path string
	// Logic joins All: `AND`, `OR`, `!AND` or `!OR`. Empty in a comparison.
	Logic string
	All   []Condition

	// Var is the variable that is compared: `arg_name`, `http_x_user`, `uri`.
	Var string
	// Op is one of Operators. Negated says that a `!` stands before it.
	Op      string
	Negated bool
	// Value is a string, number or boolean; for `in` and `ipmatch` it may be a list.
	// Expressions of `~~` and `~*` compile as RE2.
	Value *structpb.Value
}

// Operators returns the operators of API7's expressions: equal, unequal,
// orderings, matching a regular expression (with case, without), being in a
// list, having an element, matching an address range.
func Operators() []string {
	return []string{"==", "~=", ">", ">=", "<", "<=", "~~", "~*", "in", "has", "ipmatch"}
}

// misspelt operators and what they are here.
var operatorHints = map[string]string{
	"=": "==", "===": "==", "eq": "==", "!=": "~=", "<>": "~=", "ne": "~=", "=~": "~~", "~": "~~", "!~": "! ~~",
	"=>": ">=", "=<": "<=", "IN": "in", "HAS": "has", "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "not": "!", "NOT": "!",
}

var (
	logicWords  = []string{"AND", "OR", "!AND", "!OR"}
	varPattern  = regexp.MustCompile(`^[A-Za-z0-9_.*$@\[\]-]{1,256}$`)
	varsExample = `for example [["arg_name", "==", "json"]]`
)

// ParseVars reads a route's vars. All conditions returned must hold. Paths of
// problems are relative to vars.
func ParseVars(vars *structpb.ListValue) ([]Condition, Problems) {
	p := &varsParser{}
	items := vars.GetValues()
	if len(items) == 0 {
		return nil, nil
	}
	if word, isString := stringOf(items[0]); isString {
		if !slices.Contains(logicWords, word) {
			p.add("", CodeInvalid, "vars is a list of conditions, each a list itself", "put the condition into another pair of brackets: "+varsExample)
			return nil, p.problems
		}
		condition := p.logic("", word, items[1:])
		return []Condition{condition}, p.problems
	}
	conditions := p.conditions("", items, 0)
	return conditions, p.problems
}

type varsParser struct{ problems Problems }

func (p *varsParser) add(path, code, message, hint string) {
	p.problems = append(p.problems, Problem{Path: path, Code: code, Message: message, Hint: hint})
}

// conditions reads the conditions of a list from offset on.
func (p *varsParser) conditions(path string, items []*structpb.Value, offset int) []Condition {
	conditions := make([]Condition, 0, len(items))
	for i, item := range items {
		conditions = append(conditions, p.condition(path+indexSegment(offset+i), item))
	}
	return conditions
}

func (p *varsParser) logic(path, word string, items []*structpb.Value) Condition {
	if len(items) == 0 {
		p.add(path, CodeRequired, word+" joins no conditions", varsExample)
	}
	return Condition{Path: path, Logic: word, All: p.conditions(path, items, 1)}
}

func (p *varsParser) condition(path string, value *structpb.Value) Condition {
	list, isList := value.GetKind().(*structpb.Value_ListValue)
	if !isList {
		p.add(path, CodeType, "a condition must be a list", varsExample)
		return Condition{}
	}
	items := list.ListValue.GetValues()
	if len(items) == 0 {
		p.add(path, CodeRequired, "the condition is empty", varsExample)
		return Condition{}
	}
	name, isString := stringOf(items[0])
	if isString && slices.Contains(logicWords, name) {
		return p.logic(path, name, items[1:])
	}
	c := Condition{Path: path, Var: name}
	if !isString || !varPattern.MatchString(name) {
		p.add(path+"[0]", CodeInvalid, "a condition begins with the name of a variable", "for example arg_NAME, http_NAME, cookie_NAME, uri, host, request_method, remote_addr")
		return c
	}
	at := 1
	if len(items) > at {
		if word, _ := stringOf(items[at]); word == "!" {
			c.Negated = true
			at++
		}
	}
	if len(items) != at+2 {
		p.add(path, CodeInvalid, fmt.Sprintf("a condition has three parts, or four with `!`; this has %d", len(items)), varsExample)
		return c
	}
	c.Op, isString = stringOf(items[at])
	if !isString || !slices.Contains(Operators(), c.Op) {
		hint := "one of " + strings.Join(Operators(), " ")
		if meant := operatorHints[c.Op]; meant != "" {
			hint = fmt.Sprintf("did you mean %q?", meant)
		}
		p.add(path+indexSegment(at), CodeInvalid, "there is no such operator", hint)
		return c
	}
	c.Value = items[at+1]
	p.operand(path+indexSegment(at+1), c)
	return c
}

// operand checks the right side of a comparison.
func (p *varsParser) operand(path string, c Condition) {
	_, isNumber := c.Value.GetKind().(*structpb.Value_NumberValue)
	text, isString := stringOf(c.Value)
	list, isList := c.Value.GetKind().(*structpb.Value_ListValue)
	switch c.Op {
	case ">", ">=", "<", "<=":
		if _, err := strconv.ParseFloat(text, 64); !isNumber && (!isString || err != nil) {
			p.add(path, CodeType, fmt.Sprintf("`%s` compares with a number", c.Op), "")
		}
	case "~~", "~*":
		if !isString {
			p.add(path, CodeType, fmt.Sprintf("`%s` matches a regular expression, which is a string", c.Op), "")
		} else if fault := regexFault(text); fault != "" {
			p.add(path, CodeInvalid, quote(text)+" "+fault, "the syntax is that of RE2, without look-around and back-references")
		}
	case "in":
		if !isList || len(list.ListValue.GetValues()) == 0 {
			p.add(path, CodeType, "`in` needs a list of values", `for example ["a", "b"]`)
			return
		}
		for i, item := range list.ListValue.GetValues() {
			if !isComparable(item) {
				p.add(path+indexSegment(i), CodeType, "a value must be a string, number or boolean", "")
			}
		}
	case "ipmatch":
		items := []*structpb.Value{c.Value}
		if isList {
			items = list.ListValue.GetValues()
		}
		if len(items) == 0 {
			p.add(path, CodeType, "`ipmatch` needs an address range", "for example 10.0.0.0/8")
		}
		for i, item := range items {
			at := path
			if isList {
				at += indexSegment(i)
			}
			if text, _ := stringOf(item); !isAddressRange(text) {
				p.add(at, CodeInvalid, "this is neither an IP address nor a CIDR range", "for example 10.0.0.0/8")
			}
		}
	default:
		if !isComparable(c.Value) {
			p.add(path, CodeType, fmt.Sprintf("`%s` compares with a string, number or boolean", c.Op), "")
		}
	}
}

func stringOf(v *structpb.Value) (string, bool) {
	s, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		return "", false
	}
	return s.StringValue, true
}

func isComparable(v *structpb.Value) bool {
	switch v.GetKind().(type) {
	case *structpb.Value_StringValue, *structpb.Value_NumberValue, *structpb.Value_BoolValue:
		return true
	}
	return false
}
