package plugin

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// schema is the part of JSON Schema that plugins need, with two words of our
// own: `x-unsupported` refuses a field that API7 knows, with the reason, and
// `x-only` refuses all of its values but some, with the reason `x-reason`.
type schema struct {
	Type             string             `json:"type"`
	Description      string             `json:"description"`
	Properties       map[string]*schema `json:"properties"`
	Required         []string           `json:"required"`
	OneOf            []*schema          `json:"oneOf"`
	Values           *schema            `json:"additionalProperties"`
	Items            *schema            `json:"items"`
	Enum             []any              `json:"enum"`
	Default          any                `json:"default"`
	Minimum          *float64           `json:"minimum"`
	ExclusiveMinimum *float64           `json:"exclusiveMinimum"`
	Maximum          *float64           `json:"maximum"`
	MinLength        *int               `json:"minLength"`
	MaxLength        *int               `json:"maxLength"`
	MinItems         *int               `json:"minItems"`
	MaxItems         *int               `json:"maxItems"`
	Pattern          string             `json:"pattern"`
	Unsupported      string             `json:"x-unsupported"`
	Only             []any              `json:"x-only"`
	Reason           string             `json:"x-reason"`

	pattern *regexp.Regexp
}

// mustSchema reads a schema that this package holds; a bad one is a bug that
// every test of the package meets.
func mustSchema(text string) *schema {
	s := &schema{}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		panic("plugin: schema: " + err.Error()) // vet:allow the schemas are constants of this package
	}
	s.prepare()
	return s
}

func (s *schema) prepare() {
	if s == nil {
		return
	}
	if s.Pattern != "" {
		s.pattern = regexp.MustCompile(s.Pattern)
	}
	s.Values.prepare()
	s.Items.prepare()
	for _, p := range s.Properties {
		p.prepare()
	}
	for _, p := range s.OneOf {
		p.prepare()
	}
}

// check judges a value; path is where it stands, "" for the whole.
func (s *schema) check(path string, v *structpb.Value) resource.Problems {
	problem := func(code, message, hint string) resource.Problems {
		return resource.Problems{{Path: path, Code: code, Message: message, Hint: hint}}
	}
	if s.Unsupported != "" {
		return problem(resource.CodeUnsupported, "cannot be honoured: "+s.Unsupported, "leave it out")
	}
	if !s.typed(v) {
		return problem(resource.CodeType, "must be "+article(s.Type), "")
	}
	if len(s.Only) > 0 && !contains(s.Only, v) {
		return problem(resource.CodeUnsupported, "cannot be honoured: "+s.Reason, "only "+list(s.Only)+" can")
	}
	if len(s.Enum) > 0 && !contains(s.Enum, v) {
		return problem(resource.CodeInvalid, "must be one of "+list(s.Enum), "")
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		return s.checkNumber(k.NumberValue, problem)
	case *structpb.Value_StringValue:
		return s.checkString(k.StringValue, problem)
	case *structpb.Value_ListValue:
		return s.checkList(path, k.ListValue.GetValues(), problem)
	case *structpb.Value_StructValue:
		return s.checkObject(path, k.StructValue.GetFields(), problem)
	}
	return nil
}

type problemFunc func(code, message, hint string) resource.Problems

func (s *schema) checkNumber(n float64, problem problemFunc) resource.Problems {
	switch {
	case s.Minimum != nil && n < *s.Minimum:
		return problem(resource.CodeInvalid, "must be at least "+number(*s.Minimum), "")
	case s.ExclusiveMinimum != nil && n <= *s.ExclusiveMinimum:
		return problem(resource.CodeInvalid, "must be more than "+number(*s.ExclusiveMinimum), "")
	case s.Maximum != nil && n > *s.Maximum:
		return problem(resource.CodeInvalid, "must be at most "+number(*s.Maximum), "")
	}
	return nil
}

func (s *schema) checkString(text string, problem problemFunc) resource.Problems {
	n := utf8.RuneCountInString(text)
	switch {
	case s.MinLength != nil && n < *s.MinLength:
		return problem(resource.CodeInvalid, fmt.Sprintf("must have at least %d characters", *s.MinLength), "")
	case s.MaxLength != nil && n > *s.MaxLength:
		return problem(resource.CodeInvalid, fmt.Sprintf("must have at most %d characters", *s.MaxLength), "")
	case s.pattern != nil && !s.pattern.MatchString(text):
		return problem(resource.CodeInvalid, "must match "+s.Pattern, "")
	}
	return nil
}

func (s *schema) checkList(path string, values []*structpb.Value, problem problemFunc) resource.Problems {
	var problems resource.Problems
	if s.MinItems != nil && len(values) < *s.MinItems {
		problems = append(problems, problem(resource.CodeInvalid, fmt.Sprintf("must have at least %d elements", *s.MinItems), "")...)
	}
	if s.MaxItems != nil && len(values) > *s.MaxItems {
		problems = append(problems, problem(resource.CodeInvalid, fmt.Sprintf("must have at most %d elements", *s.MaxItems), "")...)
	}
	if s.Items == nil {
		return problems
	}
	for i, v := range values {
		problems = append(problems, s.Items.check(path+"["+strconv.Itoa(i)+"]", v)...)
	}
	return problems
}

func (s *schema) checkObject(path string, fields map[string]*structpb.Value, problem problemFunc) resource.Problems {
	var problems resource.Problems
	for _, name := range sortedKeys(fields) {
		at := name
		if path != "" {
			at = path + "." + name
		}
		switch field := s.Properties[name]; {
		case field != nil:
			problems = append(problems, field.check(at, fields[name])...)
		case s.Values != nil:
			problems = append(problems, s.Values.check(at, fields[name])...)
		default:
			problems = append(problems, resource.Problem{
				Path: at, Code: resource.CodeUnknown, Message: "unknown field", Hint: "known are " + strings.Join(sortedKeys(s.Properties), ", "),
			})
		}
	}
	for _, name := range s.Required {
		if fields[name] == nil {
			at := name
			if path != "" {
				at = path + "." + name
			}
			problems = append(problems, resource.Problem{Path: at, Code: resource.CodeRequired, Message: "is required"})
		}
	}
	if len(s.OneOf) > 0 {
		var names []string
		given := 0
		for _, alternative := range s.OneOf {
			names = append(names, alternative.Required...)
			if !slices.ContainsFunc(alternative.Required, func(n string) bool { return fields[n] == nil }) {
				given++
			}
		}
		if given != 1 {
			problems = append(problems, problem(resource.CodeConflict, "needs exactly one of "+strings.Join(names, ", "), "")...)
		}
	}
	return problems
}

func (s *schema) typed(v *structpb.Value) bool {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return s.Type == "string" || s.Type == ""
	case *structpb.Value_BoolValue:
		return s.Type == "boolean" || s.Type == ""
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return false
		}
		return s.Type == "number" || s.Type == "" || s.Type == "integer" && k.NumberValue == math.Trunc(k.NumberValue)
	case *structpb.Value_ListValue:
		return s.Type == "array" || s.Type == ""
	case *structpb.Value_StructValue:
		return s.Type == "object" || s.Type == ""
	}
	return false
}

func article(kind string) string {
	switch kind {
	case "":
		return "a finite number, a text, a list or an object"
	case "integer", "array", "object":
		return "an " + kind
	}
	return "a " + kind
}

func contains(values []any, v *structpb.Value) bool {
	return slices.ContainsFunc(values, func(a any) bool { return a == v.AsInterface() })
}

func list(values []any) string {
	words := make([]string, len(values))
	for i, v := range values {
		text, _ := json.Marshal(v)
		words[i] = string(text)
	}
	return strings.Join(words, ", ")
}

func number(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
