package plugin

import (
	"regexp"
	"strconv"
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// proxyRewrite changes what is sent upstream: path, host and headers. Path and
// host become settings of the route, headers Envoy's header_mutation filter. On
// a global rule it can change headers only.
//
// uri replaces the whole path and keeps the query. regex_uri
// replaces its first match in the path.
// Header values may hold $remote_addr, $host, $request_method and $http_<header>.
func proxyRewrite() *definition {
	const headers = `"headers": {
		"type": "object", "description": "add appends, set replaces, remove removes; names without one of these are set.",
		"properties": {
			"add":    {"type": "object", "additionalProperties": {}},
			"set":    {"type": "object", "additionalProperties": {}},
			"remove": {"type": "array", "items": {"type": "string", "minLength": 1}}
		},
		"additionalProperties": {}
	},
	"method": {"x-unsupported": "Envoy does not let a filter change the method"},
	"use_real_request_uri_unsafe": {"x-unsupported": "Envoy routes and forwards the normalised path"}`
	return &definition{
		name: "proxy-rewrite",
		config: mustSchema(`{
			"type": "object",
			"properties": {
				"uri": {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": "^/", "description": "The path sent upstream."},
				"regex_uri": {"type": "array", "minItems": 2, "items": {"type": "string"}, "description": "A regular expression and what replaces its first match, with $1 for groups."},
				"host": {"type": "string", "pattern": "^[0-9a-zA-Z-._]+(:[0-9]{1,5})?$", "description": "The Host sent upstream."},
				` + headers + `
			}
		}`),
		rule: mustSchema(`{
			"type": "object",
			"properties": {
				"uri": {"x-unsupported": "a global rule cannot change the path"},
				"regex_uri": {"x-unsupported": "a global rule cannot change the path"},
				"host": {"x-unsupported": "a global rule cannot change the host"},
				` + headers + `
			}
		}`),
		judge: judgeProxyRewrite,
		apply: applyProxyRewrite,
	}
}

func judgeProxyRewrite(_ resource.Where, config *structpb.Struct) resource.Problems {
	var problems resource.Problems
	fields := config.GetFields()
	if len(fields) == 0 {
		problems = append(problems, problemAt("", resource.CodeRequired, "needs at least one field", "uri, regex_uri, host or headers")...)
	}
	if uri := fields["uri"].GetStringValue(); strings.ContainsAny(uri, "?$#") {
		problems = append(problems, problemAt("uri", resource.CodeUnsupported, "cannot be honoured: variables and a query in the new path", "write a plain path; the request's query is kept")...)
	}
	if pair := fields["regex_uri"].GetListValue().GetValues(); pair != nil {
		if fields["uri"] != nil {
			problems = append(problems, problemAt("regex_uri", resource.CodeConflict, "has no effect beside uri", "leave one of them out")...)
		}
		if len(pair) > 2 {
			problems = append(problems, problemAt("regex_uri", resource.CodeUnsupported, "cannot be honoured: more than one pair", "give one regular expression and one replacement")...)
		} else {
			problems = append(problems, judgeRegexURI(pair[0].GetStringValue(), pair[1].GetStringValue())...)
		}
	}
	_, found := mutations(fields["headers"].GetStructValue())
	return append(problems, found...)
}

// maxGroups leaves three of the ten groups that a replacement can name.
const maxGroups = 6

func judgeRegexURI(pattern, template string) resource.Problems {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return problemAt("regex_uri[0]", resource.CodeInvalid, "not a regular expression of RE2, which Envoy uses", "RE2 has no lookaround and no backreferences")
	}
	if re.NumSubexp() > maxGroups {
		return problemAt("regex_uri[0]", resource.CodeUnsupported, "more than 6 groups cannot be honoured", "use (?:...) for groups that the replacement does not name")
	}
	if _, err := substitution(template, re.NumSubexp(), 0); err != "" {
		return problemAt("regex_uri[1]", resource.CodeUnsupported, err, "$1 to $6, or ${1}, name the groups; $0 is the whole match")
	}
	return nil
}

// substitution writes nginx's replacement as RE2's, with the groups' numbers
// moved. It returns why that cannot be, if so.
func substitution(template string, groups, shift int) (string, string) {
	var b strings.Builder
	for i := 0; i < len(template); i++ {
		switch c := template[i]; {
		case c == '\\':
			b.WriteString(`\\`)
		case c != '$':
			b.WriteByte(c)
		default:
			rest := template[i+1:]
			digits := strings.TrimPrefix(rest, "{")
			n := 0
			for n < len(digits) && '0' <= digits[n] && digits[n] <= '9' {
				n++
			}
			group, err := strconv.Atoi(digits[:n])
			braced := digits != rest
			if err != nil || braced && (n == len(digits) || digits[n] != '}') {
				return "", "variables in the replacement cannot be honoured"
			}
			if group > groups {
				return "", "the replacement names a group that the regular expression does not have"
			}
			i += n
			if braced {
				i += 2
			}
			b.WriteString(`\` + strconv.Itoa(group+shift))
		}
	}
	return b.String(), ""
}

// RegexRewrite is regex_uri as Envoy does it: Envoy replaces every match, API7
// the first, so that the regex takes in what stands around the first match.
func RegexRewrite(pattern, template string) (regex, replacement string) {
	groups := regexp.MustCompile(pattern).NumSubexp()
	middle, _ := substitution(template, groups, 2)
	return `^((?s:.*?))(` + pattern + `)((?s:.*))$`, `\1` + middle + `\` + strconv.Itoa(groups+3)
}

func applyProxyRewrite(e *Effect, config *structpb.Struct) {
	fields := config.GetFields()
	e.Rewrite.Host = fields["host"].GetStringValue()
	e.Rewrite.Path = fields["uri"].GetStringValue()
	if pair := fields["regex_uri"].GetListValue().GetValues(); len(pair) == 2 && e.Rewrite.Path == "" {
		e.Rewrite.Pattern, e.Rewrite.Substitution = pair[0].GetStringValue(), pair[1].GetStringValue()
	}
	if found, _ := mutations(fields["headers"].GetStructValue()); len(found) > 0 {
		e.enable("proxy-rewrite", &headermutationv3.HeaderMutationPerRoute{Mutations: &headermutationv3.Mutations{RequestMutations: found}})
	}
}

// mutations translates headers, in API7's order: add, set, remove.
func mutations(headers *structpb.Struct) ([]*mutationrulesv3.HeaderMutation, resource.Problems) {
	var out []*mutationrulesv3.HeaderMutation
	var problems resource.Problems
	put := func(path, name string, v *structpb.Value, action corev3.HeaderValueOption_HeaderAppendAction) {
		value, why := headerValue(v)
		if why == "" {
			why = badHeader(name)
		}
		if why != "" {
			problems = append(problems, problemAt(path, resource.CodeUnsupported, why, "supported variables are $remote_addr, $host, $request_method and $http_<header>")...)
			return
		}
		out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: strings.ToLower(name), Value: value}, AppendAction: action,
			// Envoy drops a mutation whose value comes out empty, which would leave
			// the client's own header where it was to be replaced.
			KeepEmptyValue: value == "" || strings.Contains(value, "%REQ("),
		}}})
	}
	fields := headers.GetFields()
	add, set, remove := fields["add"].GetStructValue().GetFields(), fields["set"].GetStructValue().GetFields(), fields["remove"].GetListValue().GetValues()
	for _, name := range sortedKeys(add) {
		put("headers.add."+name, name, add[name], corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	}
	for _, name := range sortedKeys(set) {
		put("headers.set."+name, name, set[name], corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	for _, name := range sortedKeys(fields) {
		if name != "add" && name != "set" && name != "remove" {
			put("headers."+name, name, fields[name], corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
		}
	}
	for i, v := range remove {
		name := v.GetStringValue()
		if why := badHeader(name); why != "" {
			problems = append(problems, problemAt("headers.remove["+strconv.Itoa(i)+"]", resource.CodeUnsupported, why, "")...)
			continue
		}
		out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: strings.ToLower(name)}})
	}
	return out, problems
}

var headerName = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

func badHeader(name string) string {
	switch {
	case !headerName.MatchString(name):
		return "not a header's name"
	case strings.EqualFold(name, "host"):
		return "Envoy does not let a filter change Host; use host"
	}
	return ""
}

// headerValue writes a value as Envoy's substitution format.
func headerValue(v *structpb.Value) (value, why string) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		return number(k.NumberValue), ""
	case *structpb.Value_StringValue:
		value = k.StringValue
	default:
		return "", "must be a string or a number"
	}
	if strings.ContainsAny(value, "\x00\r\n") {
		return "", "must not hold line breaks"
	}
	value = strings.ReplaceAll(value, "%", "%%")
	value = combinedVariable.ReplaceAllStringFunc(value, func(variable string) string {
		name := strings.Trim(variable, "${}")
		switch {
		case name == "remote_addr":
			return "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
		case name == "host":
			return "%REQ(:AUTHORITY)%"
		case name == "request_method":
			return "%REQ(:METHOD)%"
		case strings.HasPrefix(name, "http_") && len(name) > len("http_"):
			return "%REQ(" + strings.ToUpper(strings.ReplaceAll(name[len("http_"):], "_", "-")) + ")%"
		}
		why = "the variable " + variable + " cannot be honoured"
		return variable
	})
	return value, why
}
