package plugin

import (
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/resource"
)

func config(t testing.TB, text string) *structpb.Struct {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s := &structpb.Struct{}
	if err := protojson.Unmarshal(data, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A configuration that is refused names the field and says why.
func TestWhatCannotBeHonouredIsRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		plugin string
		where  resource.Where
		config string
		want   []string // path: code: part of the message
	}{
		{"nope", resource.WhereRoute, `{}`, []string{`: unknown: unknown plugin "nope"`}},
		{"cors", resource.WhereConsumer, `{}`, []string{": unsupported: cannot be used on a consumer"}},
		{"cors", resource.WhereMetadata, `{}`, []string{": unsupported: no metadata"}},
		{"cors", resource.WhereRoute, `{allow_origin: "*"}`, []string{"allow_origin: unknown: unknown field"}},
		{"cors", resource.WhereRoute, `{max_age: "5"}`, []string{"max_age: type: must be an integer"}},
		{"cors", resource.WhereRoute, `{max_age: 1.5}`, []string{"max_age: type: must be an integer"}},
		{"cors", resource.WhereRoute, `{max_age: -2}`, []string{"max_age: invalid: at least -1"}},
		{"cors", resource.WhereRoute, `{allow_credential: true, allow_methods: GET, allow_headers: a}`, []string{"allow_origins: conflict: must not be *"}},
		{"cors", resource.WhereRoute, `{allow_origins_by_regex: ["("]}`, []string{"allow_origins_by_regex[0]: invalid: not a regular expression"}},
		{"cors", resource.WhereRoute, `{allow_origins_by_regex: []}`, []string{"allow_origins_by_regex: invalid: at least 1"}},
		{"cors", resource.WhereRoute, `{allow_origins_by_metadata: [a]}`, []string{"allow_origins_by_metadata: unsupported: metadata"}},
		{"cors", resource.WhereRoute, `{_meta: {priority: 1, disable: "yes"}}`, []string{"_meta.disable: type: must be a boolean", "_meta.priority: unsupported: fixed order"}},
		{"ip-restriction", resource.WhereRoute, `{}`, []string{": conflict: exactly one of whitelist, blacklist"}},
		{"ip-restriction", resource.WhereRoute, `{whitelist: [10.0.0.1], blacklist: [10.0.0.2]}`, []string{": conflict: exactly one of"}},
		{"ip-restriction", resource.WhereRoute, `{whitelist: [10.0.0.1, 10.0.0.0/33]}`, []string{"whitelist[1]: invalid: neither an IP address nor a range"}},
		{"ip-restriction", resource.WhereRoute, `{blacklist: ["fe80::1%eth0"]}`, []string{"blacklist[0]: invalid: neither an IP address nor a range"}},
		{"ip-restriction", resource.WhereGlobalRule, `{whitelist: [10.0.0.1], message: no, response_code: 404}`, []string{"message: unsupported: text of its own", "response_code: unsupported: always answers 403"}},
		{"key-auth", resource.WhereRoute, `{header: "", anonymous_consumer: bob}`, []string{"anonymous_consumer: unsupported: without a key", "header: invalid: at least 1"}},
		{"key-auth", resource.WhereRoute, `{header: "a b", query: "a)b"}`, []string{"header: invalid: not a header's name", "query: unsupported: a key in this query parameter"}},
		{"key-auth", resource.WhereService, `{header: X-Muster-Key, query: "a%b"}`, []string{"header: unsupported: a key in this header", "query: unsupported: a key in this query parameter"}},
		{"key-auth", resource.WhereGlobalRule, `{header: Host}`, []string{"header: unsupported: a key in this header"}},
		{"key-auth", resource.WhereCredential, `{}`, []string{"key: required: is required"}},
		{"key-auth", resource.WhereCredential, `{key: k, header: h}`, []string{"header: unknown: unknown field"}},
		{"limit-count", resource.WhereRoute, `{count: 0, time_window: 1}`, []string{"count: invalid: more than 0"}},
		{"limit-count", resource.WhereRoute, `{count: 1}`, []string{"time_window: required: is required"}},
		{"limit-count", resource.WhereRoute, `{count: 1, time_window: 1, policy: redis, rejected_code: 500, group: g}`,
			[]string{"group: unsupported: shared", "policy: unsupported: each data plane", "rejected_code: unsupported: one for 503 and one for 429"}},
		{"limit-count", resource.WhereRoute, `{count: 1, time_window: 1, key: server_addr}`, []string{"key: unsupported: cannot count by"}},
		{"limit-count", resource.WhereRoute, `{count: 1, time_window: 1, key_type: var_combination, key: plain}`, []string{"key: invalid: names no variable"}},
		{"limit-count", resource.WhereRoute, `{count: 1, time_window: 1, key_type: var_combination, key: "$http_a $http_b $http_c"}`, []string{"key: unsupported: more than two headers"}},
		{"limit-count", resource.WhereRoute, `{count: 1, time_window: 1, key_type: other}`, []string{`key_type: invalid: one of "var"`}},
		{"proxy-rewrite", resource.WhereRoute, `{}`, []string{": required: at least one field"}},
		{"proxy-rewrite", resource.WhereRoute, `{method: GET}`, []string{"method: unsupported: does not let a filter change the method"}},
		{"proxy-rewrite", resource.WhereRoute, `{uri: x}`, []string{"uri: invalid: must match ^/"}},
		{"proxy-rewrite", resource.WhereRoute, `{uri: "/a?b=$arg_c"}`, []string{"uri: unsupported: variables and a query"}},
		{"proxy-rewrite", resource.WhereRoute, `{uri: /a, regex_uri: [a, b]}`, []string{"regex_uri: conflict: no effect"}},
		{"proxy-rewrite", resource.WhereRoute, `{regex_uri: [a]}`, []string{"regex_uri: invalid: at least 2"}},
		{"proxy-rewrite", resource.WhereRoute, `{regex_uri: [a, b, c, d]}`, []string{"regex_uri: unsupported: more than one pair"}},
		{"proxy-rewrite", resource.WhereRoute, `{regex_uri: ["(?=a)", b]}`, []string{"regex_uri[0]: invalid: RE2"}},
		{"proxy-rewrite", resource.WhereRoute, `{regex_uri: ["(a)", "/$2"]}`, []string{"regex_uri[1]: unsupported: does not have"}},
		{"proxy-rewrite", resource.WhereRoute, `{regex_uri: ["(a)", "/$arg_x"]}`, []string{"regex_uri[1]: unsupported: variables"}},
		{"proxy-rewrite", resource.WhereRoute, `{headers: {set: {Host: a}, add: {x: "$server_addr"}, remove: ["a b"]}}`,
			[]string{"headers.add.x: unsupported: $server_addr", "headers.remove[0]: unsupported: not a header", "headers.set.Host: unsupported: use host"}},
		{"proxy-rewrite", resource.WhereGlobalRule, `{uri: /a, headers: {x: 1}}`, []string{"uri: unsupported: cannot change the path"}},
	} {
		t.Run(c.plugin+" "+c.config, func(t *testing.T) {
			problems := Set().Check(c.plugin, c.where, config(t, c.config))
			if len(problems) != len(c.want) {
				t.Fatalf("%d problems:\n%+v", len(problems), problems)
			}
			for _, want := range c.want {
				parts := strings.SplitN(want, ": ", 3)
				found := false
				for _, p := range problems {
					found = found || p.Path == strings.TrimPrefix(parts[0], ":") && p.Code == parts[1] && strings.Contains(p.Message, parts[2])
				}
				if !found {
					t.Errorf("no %q among\n%+v", want, problems)
				}
			}
		})
	}
}

func TestGoodConfigurationsPass(t *testing.T) {
	for plugin, configs := range map[string][]string{
		"cors":           {`{}`, `{allow_credential: true, allow_origins: "**", allow_methods: "**", allow_headers: "**"}`, `{allow_origins_by_regex: ["\\.example\\.com$"], allow_credential: true, allow_methods: GET, allow_headers: a}`},
		"ip-restriction": {`{whitelist: [10.0.0.1, "::/0"]}`, `{blacklist: [10.0.0.0/8], response_code: 403}`},
		"key-auth":       {`{}`, `{header: x-key, query: k, hide_credentials: true, _meta: {disable: true}}`},
		"limit-count":    {`{count: 1, time_window: 60, policy: local, rejected_code: 429, allow_degradation: false, show_limit_quota_header: true}`, `{count: 1, time_window: 1, key: http_x_y}`, `{count: 1, time_window: 1, key_type: constant, key: x}`},
		"proxy-rewrite":  {`{uri: /a}`, `{headers: {x-a: 1, set: {x-b: "$http_x_c"}}}`},
	} {
		for _, c := range configs {
			for _, where := range []resource.Where{resource.WhereService, resource.WhereRoute, resource.WhereGlobalRule} {
				if where == resource.WhereGlobalRule && strings.Contains(c, "uri") {
					continue
				}
				if problems := Set().Check(plugin, where, config(t, c)); len(problems) > 0 {
					t.Errorf("%s %s on a %s: %+v", plugin, c, where, problems)
				}
			}
		}
	}
}

// Numbers that JSON cannot carry come in by gRPC.
func TestNumbersThatAreNoneAreRefused(t *testing.T) {
	for _, n := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e300} {
		for _, plugin := range []string{"limit-count", "cors"} {
			c := &structpb.Struct{Fields: map[string]*structpb.Value{
				"count": structpb.NewNumberValue(n), "time_window": structpb.NewNumberValue(n), "max_age": structpb.NewNumberValue(n),
			}}
			if problems := Set().Check(plugin, resource.WhereRoute, c); len(problems) == 0 {
				t.Errorf("%s takes %v", plugin, n)
			}
		}
	}
}

// A problem never repeats what the user gave for a secret.
func TestProblemsHoldNoSecrets(t *testing.T) {
	for _, c := range []string{`{key: [hunter2]}`, `{key: hunter2, other: hunter2}`} {
		for _, p := range Set().Check("key-auth", resource.WhereCredential, config(t, c)) {
			if strings.Contains(p.Message+p.Hint+p.Path, "hunter2") {
				t.Errorf("%+v", p)
			}
		}
	}
}

// Every filter that a plugin switches on is in the chain, under its name.
func TestEveryPluginHasItsFiltersInTheChain(t *testing.T) {
	chain := map[string]bool{}
	for _, f := range Chain() {
		chain[f.Name] = true
	}
	for plugin, text := range map[string]string{
		"cors": `{}`, "ip-restriction": `{whitelist: [10.0.0.1]}`, "key-auth": `{}`,
		"limit-count": `{count: 1, time_window: 1}`, "proxy-rewrite": `{headers: {x: y}}`,
	} {
		for _, global := range []bool{false, true} {
			configs := []Configured{{Name: plugin, Config: config(t, text), Where: resource.WhereRoute}}
			translate := Set().Route
			if global {
				configs[0].Where, translate = resource.WhereGlobalRule, Set().GlobalRule
			}
			effect, problems := translate("id", configs)
			if len(problems) > 0 || len(effect.PerFilter) == 0 {
				t.Fatalf("%s: %v, %v", plugin, effect.PerFilter, problems)
			}
			for name := range effect.PerFilter {
				if !chain[name] || strings.HasPrefix(name, GlobalPrefix) != global {
					t.Errorf("%s switches on %q", plugin, name)
				}
			}
		}
	}
	for _, name := range Set().Names() {
		if !chain[name] || !chain[GlobalPrefix+name] {
			t.Errorf("%s has no filter", name)
		}
	}
}

// nginx replaces the first match only; Envoy replaces all. What is emitted makes
// the two the same.
func TestRegexRewriteReplacesTheFirstMatchOnly(t *testing.T) {
	patterns := []string{`a`, `a+`, `(a)(b)?`, `^/x/(\w+)`, `(\d)$`, `(a|ab)(c|bcd)`, `b*?c`, `(?i)A`}
	templates := []string{`-`, `<$0>`, `$1`, `${1}x`, `\$1`, `/new/$1\`}
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.SampledFrom(patterns).Draw(t, "pattern")
		template := rapid.SampledFrom(templates).Draw(t, "template")
		path := "/" + rapid.StringMatching(`[abcdx/1]{0,8}`).Draw(t, "path")
		re := regexp.MustCompile(pattern)
		if _, why := substitution(template, re.NumSubexp(), 0); why != "" {
			t.Skip(why)
		}
		want := path
		if m := re.FindStringSubmatchIndex(path); m != nil {
			want = path[:m[0]] + expand(re, template, path, m) + path[m[1]:]
		}
		regex, replacement := RegexRewrite(pattern, template)
		got := envoyRewrite(regexp.MustCompile(regex), replacement, path)
		if got != want {
			t.Errorf("%s of %q by %q is %q (%s, %s), want %q", pattern, path, template, got, regex, replacement, want)
		}
	})
}

// expand fills in nginx's template.
func expand(re *regexp.Regexp, template, path string, m []int) string {
	return regexp.MustCompile(`\$\{?(\d)\}?`).ReplaceAllStringFunc(template, func(v string) string {
		n := int(strings.Trim(v, "${}")[0] - '0')
		if m[2*n] < 0 {
			return ""
		}
		return path[m[2*n]:m[2*n+1]]
	})
}

// envoyRewrite replaces every match as RE2 does, with \1 for groups.
func envoyRewrite(re *regexp.Regexp, replacement, path string) string {
	return re.ReplaceAllStringFunc(path, func(match string) string {
		m := re.FindStringSubmatch(match)
		var b strings.Builder
		for i := 0; i < len(replacement); i++ {
			if replacement[i] != '\\' {
				b.WriteByte(replacement[i])
				continue
			}
			i++
			if replacement[i] == '\\' {
				b.WriteByte('\\')
			} else {
				b.WriteString(m[replacement[i]-'0'])
			}
		}
		return b.String()
	})
}

func TestRangesOfIPv4WrittenAsIPv6AreIPv4(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "10.1.2.3/8": "10.0.0.0/8", "::ffff:10.1.2.3": "10.1.2.3/32", "::ffff:10.1.2.3/104": "10.0.0.0/8",
		"2001:db8::1": "2001:db8::1/128", "2001:db8::1/32": "2001:db8::/32", "::/0": "::/0", "::ffff:0:0/95": "::fffe:0:0/95",
	} {
		if p, err := ParseRange(text); err != nil || p.String() != want {
			t.Errorf("%s: %v %v, want %s", text, p, err, want)
		}
	}
}
