package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
)

// with returns the JSON of a route of a prefix with filters switched on.
func with(prefix string, filters string, action ...string) string {
	return `{"name":"` + prefix + `","match":{"prefix":"` + prefix + `"},"route":{"cluster":"c","timeout":"0s"` + strings.Join(action, "") + `},"typedPerFilterConfig":{` + filters + `}}`
}

func typed(filter, message, fields string) string {
	return `"` + filter + `":{"@type":"type.googleapis.com/envoy.extensions.filters.http.` + message + `",` + fields + `}`
}

func cors(fields string) string { return typed("cors", "cors.v3.CorsPolicy", fields) }

func ips(filter, action string, ranges ...string) string {
	var ids []string
	for _, r := range ranges {
		addr, bits, _ := strings.Cut(r, "/")
		ids = append(ids, `{"remoteIp":{"addressPrefix":"`+addr+`","prefixLen":`+bits+`}}`)
	}
	return typed(filter, "rbac.v3.RBACPerRoute", `"rbac":{"rules":{"action":"`+action+`","policies":{"p":{"permissions":[{"any":true}],"principals":[`+strings.Join(ids, ",")+`]}}}}`)
}

// filterLab has the upstream `c` and the plugins' filters.
func filterLab(t *testing.T, resources ...named) *lab {
	t.Helper()
	up := echo(t, "a")
	return newLab(t, append(append(edsCluster("c", up.URL), plugins()...), resources...)...)
}

func TestCORS(t *testing.T) {
	l := filterLab(t, catchAll(
		with("/listed", cors(`"allowOriginStringMatch":[{"exact":"http://a.com"}],"allowMethods":"GET,POST","allowHeaders":"x-a","exposeHeaders":"x-b","maxAge":"5","allowCredentials":true`)),
		with("/any", cors(`"allowOriginStringMatch":[{"exact":"*"}],"allowMethods":"*","allowHeaders":"*","forwardNotMatchingPreflights":false`)),
		with("/closed", cors(`"allowOriginStringMatch":[{"exact":"http://a.com"}],"allowMethods":"GET","forwardNotMatchingPreflights":false`)),
		with("/exposed", cors(`"allowOriginStringMatch":[{"exact":"http://a.com"}],"allowMethods":"GET","exposeHeaders":"x-b","forwardNotMatchingPreflights":false`)),
		with("/bare", `"cors":`+on),
		tag("direct", `{"prefix":"/direct"}`, `,"typedPerFilterConfig":{`+cors(`"allowOriginStringMatch":[{"exact":"*"}]`)+`}`),
	))
	type expectation struct {
		method, target, origin string
		preflight              bool
		upstream               bool
		headers                string
	}
	for _, test := range []expectation{
		{"GET", "/listed", "", false, true, ""},
		{"GET", "/listed", "http://a.com", false, true, "Allow-Credentials=true Allow-Origin=http://a.com Expose-Headers=x-b"},
		{"GET", "/listed", "http://b.com", false, true, ""},
		{"OPTIONS", "/listed", "http://a.com", true, false, "Allow-Credentials=true Allow-Headers=x-a Allow-Methods=GET,POST Allow-Origin=http://a.com Expose-Headers=x-b Max-Age=5"},
		{"OPTIONS", "/listed", "http://b.com", true, true, ""},
		{"OPTIONS", "/listed", "http://a.com", false, true, "Allow-Credentials=true Allow-Origin=http://a.com Expose-Headers=x-b"},
		{"OPTIONS", "/any", "http://z.com", true, false, "Allow-Headers=x-asked Allow-Methods=PUT Allow-Origin=http://z.com"},
		{"OPTIONS", "/closed", "http://b.com", true, false, "Allow-Methods=GET"},
		{"GET", "/any", "http://a.com\nhttp://b.com", false, true, "Allow-Origin=http://a.com,http://b.com"},
		{"GET", "/listed", "http://a.com\nhttp://b.com", false, true, ""},
		{"OPTIONS", "/exposed", "http://b.com", true, false, "Allow-Methods=GET"},
		{"GET", "/bare", "http://a.com", false, true, ""},
		{"GET", "/direct", "http://a.com", false, false, ""},
		{"OPTIONS", "/direct", "http://a.com", true, false, ""},
	} {
		a := l.do(test.method, test.target, func(r *http.Request) {
			if test.origin != "" {
				r.Header["Origin"] = strings.Split(test.origin, "\n")
			}
			if test.preflight {
				r.Header.Set("Access-Control-Request-Method", "PUT")
				r.Header.Set("Access-Control-Request-Headers", "x-asked")
			}
		})
		var got []string
		for _, name := range []string{"Allow-Credentials", "Allow-Headers", "Allow-Methods", "Allow-Origin", "Expose-Headers", "Max-Age"} {
			if v, ok := a.header["Access-Control-"+name]; ok {
				got = append(got, name+"="+strings.Join(v, ","))
			}
		}
		if a.status != 200 || (a.seen != nil) != test.upstream || strings.Join(got, " ") != test.headers {
			t.Errorf("%+v: %d, upstream %v, %v", test, a.status, a.seen != nil, got)
		}
	}
}

func TestIPRestriction(t *testing.T) {
	l := filterLab(t, catchAll(
		with("/allow-me", ips("ip-restriction", "ALLOW", "10.0.0.0/8", "127.0.0.1/32")),
		with("/allow-others", ips("ip-restriction", "ALLOW", "10.0.0.0/8")),
		with("/deny-me", ips("ip-restriction", "DENY", "127.0.0.0/8")),
		with("/deny-others", ips("ip-restriction", "DENY", "10.0.0.0/8", "::/0")),
	))
	for target, want := range map[string]int{"/allow-me": 200, "/allow-others": 403, "/deny-me": 403, "/deny-others": 200} {
		a := l.do("GET", target, header("X-Forwarded-For", "10.0.0.1"))
		if a.status != want || want == 403 && a.body != "RBAC: access denied" {
			t.Errorf("%s: %d %q, want %d", target, a.status, a.body, want)
		}
	}
}

func TestKeyAuth(t *testing.T) {
	override := func(fields string) string { return typed("key-auth", "api_key_auth.v3.ApiKeyAuthPerRoute", fields) }
	l := filterLab(t, catchAll(
		with("/key", `"key-auth":`+on),
		with("/hide", override(`"forwarding":{"header":"x-consumer-username","hideCredentials":true}`)),
		with("/allow", override(`"allowedClients":["alice"]`)),
		with("/other", override(`"keySources":[{"header":"authorization"},{"cookie":"ck"}],"forwarding":{"header":"x-c","hideCredentials":true}`)),
	))
	for _, test := range []struct {
		target string
		header []string
		status int
		body   string
		seen   string // uri, then headers of interest
	}{
		{"/key", nil, 401, "Client authentication failed.", ""},
		{"/key", []string{"apikey: bad"}, 401, "Client authentication failed.", ""},
		{"/key", []string{"apikey: k1", "x-consumer-username: evil"}, 200, "", "/key Apikey=k1 X-Consumer-Username=alice"},
		{"/key?x=1&apikey=k2", nil, 200, "", "/key?x=1&apikey=k2 X-Consumer-Username=bob"},
		{"/key?apikey=%6b2", nil, 200, "", "/key?apikey=%6b2 X-Consumer-Username=bob"},
		{"/hide", []string{"apikey: k1"}, 200, "", "/hide X-Consumer-Username=alice"},
		{"/hide?a=1&apikey=k2&x=1", nil, 200, "", "/hide?a=1&x=1 X-Consumer-Username=bob"},
		{"/hide?apikey=k2", nil, 200, "", "/hide X-Consumer-Username=bob"},
		{"/allow", []string{"apikey: k1"}, 200, "", "/allow Apikey=k1"},
		{"/allow", []string{"apikey: k2"}, 403, "Client is forbidden.", ""},
		{"/other", []string{"apikey: k1"}, 401, "Client authentication failed.", ""},
		{"/other", []string{"authorization: Bearer k1"}, 200, "", "/other X-C=alice"},
		{"/other", []string{"authorization: bearer k1"}, 401, "Client authentication failed.", ""},
		{"/key", []string{"apikey: Bearer k1"}, 200, "", "/key Apikey=Bearer k1 X-Consumer-Username=alice"},
		{"/key", []string{"apikey: k1", "apikey: k2"}, 200, "", "/key Apikey=k1 X-Consumer-Username=alice"},
		{"/key", []string{"apikey: no", "apikey: k1"}, 401, "Client authentication failed.", ""},
		{"/other", []string{"cookie: a=b; ck=k2; c=d"}, 200, "", "/other Cookie=a=b; c=d X-C=bob"},
	} {
		a := l.do("GET", test.target, func(r *http.Request) {
			for _, h := range test.header {
				name, value, _ := strings.Cut(h, ": ")
				r.Header.Add(name, value)
			}
		})
		got := ""
		if a.seen != nil {
			got = a.seen.URI
			for _, name := range []string{"Apikey", "Authorization", "Cookie", "X-C", "X-Consumer-Username"} {
				if v := a.seen.Header.Get(name); v != "" {
					got += " " + name + "=" + v
				}
			}
		} else if a.body != test.body {
			t.Errorf("%s %v: %q", test.target, test.header, a.body)
		}
		if a.status != test.status || got != test.seen {
			t.Errorf("%s %v: %d %q, want %d %q", test.target, test.header, a.status, got, test.status, test.seen)
		}
	}
	l.apply(keyAuth(`{"key":"k3","client":"carol"}`))
	for key, want := range map[string]int{"k1": 401, "k3": 200} {
		if a := l.do("GET", "/key", header("apikey", key)); a.status != want {
			t.Errorf("after the change, %s: %d, want %d", key, a.status, want)
		}
	}
	if why := l.refuses(keyAuth(`{"key":"s3cret","client":"x"}`, `{"key":"s3cret","client":"y"}`)); !strings.Contains(why, "duplicated") || strings.Contains(why, "s3cret") {
		t.Errorf("a duplicate key: %s", why)
	}
	l.apply(gone("key-auth", &corev3.TypedExtensionConfig{}))
	if a := l.do("GET", "/key", header("apikey", "k3")); a.status != 500 || a.body != "" {
		t.Errorf("without its ECDS resource: %d %q, want 500", a.status, a.body)
	}
}

func TestRateLimitAnswers(t *testing.T) {
	l := filterLab(t, limits(`{"entries":[{"key":"generic_key","value":"r1"}],"tokenBucket":{"maxTokens":2,"tokensPerFill":2,"fillInterval":"3600s"}}`),
		catchAll(with("/", `"limit-count":`+on, `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"r1"}}]}]`)))
	var got []string
	for range 3 {
		a := l.do("GET", "/")
		got = append(got, fmt.Sprint(a.status, " ", a.header.Get("X-Ratelimit-Limit"), " ", a.header.Get("X-Ratelimit-Remaining"), " ", a.header.Get("X-Ratelimit-Reset")))
		if a.status == 503 && a.body != "local_rate_limited" {
			t.Errorf("body %q", a.body)
		}
	}
	if want := "[200 2 1 0 200 2 0 1800 503 2 0 1800]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestRateLimitsCountByWhatTheActionsSay(t *testing.T) {
	hour := `"tokenBucket":{"maxTokens":1,"tokensPerFill":1,"fillInterval":"3600s"}`
	l := filterLab(t, limits(
		`{"entries":[{"key":"generic_key","value":"addr"},{"key":"remote_address"}],`+hour+`}`,
		`{"entries":[{"key":"generic_key","value":"tenant"},{"key":"x-tenant"}],`+hour+`}`,
		`{"entries":[{"key":"generic_key","value":"tenant"},{"key":"no-x-tenant","value":"1"},{"key":"remote_address"}],`+hour+`}`,
	), catchAll(
		with("/addr", `"limit-count":`+on, `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"addr"}},{"remoteAddress":{}}]}]`),
		with("/tenant", `"limit-count":`+on, `,"rateLimits":[`+
			`{"actions":[{"genericKey":{"descriptorValue":"tenant"}},{"requestHeaders":{"headerName":"x-tenant","descriptorKey":"x-tenant"}}]},`+
			`{"actions":[{"genericKey":{"descriptorValue":"tenant"}},{"headerValueMatch":{"descriptorKey":"no-x-tenant","descriptorValue":"1","expectMatch":false,"headers":[{"name":"x-tenant","presentMatch":true}]}},{"remoteAddress":{}}]}]`),
		with("/free", `"limit-count":`+on),
	))
	for i, test := range []struct {
		target, tenant string
		want           int
	}{
		{"/addr", "", 200}, {"/addr", "", 503},
		{"/tenant", "a", 200}, {"/tenant", "a", 503}, {"/tenant", "b", 200}, {"/tenant", "", 200}, {"/tenant", "", 503}, {"/tenant", "b", 503},
		{"/free", "", 200}, {"/free", "", 200},
	} {
		a := l.do("GET", test.target, func(r *http.Request) {
			if test.tenant != "" {
				r.Header.Set("X-Tenant", test.tenant)
			}
		})
		if a.status != test.want {
			t.Errorf("request %d %+v: %d", i, test, a.status)
		}
	}
}

func TestRateLimitBucketsSurviveWhateverElseChanges(t *testing.T) {
	r1 := `{"entries":[{"key":"generic_key","value":"r1"}],"tokenBucket":{"maxTokens":2,"tokensPerFill":2,"fillInterval":"3600s"}}`
	wild := `{"entries":[{"key":"generic_key","value":"r2"},{"key":"remote_address"}],"tokenBucket":{"maxTokens":2,"tokensPerFill":2,"fillInterval":"3600s"}}`
	route := catchAll(
		with("/one", `"limit-count":`+on, `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"r1"}}]}]`),
		with("/two", `"limit-count":`+on, `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"r2"}},{"remoteAddress":{}}]}]`),
	)
	l := filterLab(t, limits(r1, wild), route)
	take := func(target string) int { return l.do("GET", target).status }
	for _, target := range []string{"/one", "/two"} {
		if take(target) != 200 {
			t.Fatal("the first request was refused")
		}
	}
	changed := routeConfiguration("global.proxy-rewrite", `{`+strings.SplitN(typed("x", "header_mutation.v3.HeaderMutationPerRoute", `"mutations":{}`), ":{", 2)[1])
	for name, change := range map[string]named{
		"a virtual host": vhost("other|", []string{"other.example/*"}, tag("x", `{"prefix":"/"}`)), "the same routes": route,
		"the route configuration": res("muster", changed), "the listener": res("http", httpListener()),
		"another descriptor": limits(r1, wild, `{"entries":[{"key":"generic_key","value":"new"}],"tokenBucket":{"maxTokens":1,"tokensPerFill":1,"fillInterval":"1s"}}`),
	} {
		l.apply(change)
		_ = name
	}
	for _, target := range []string{"/one", "/two"} {
		if first, second := take(target), take(target); first != 200 || second != 503 {
			t.Errorf("%s after the changes: %d %d, want 200 503", target, first, second)
		}
	}
	l.apply(limits(strings.Replace(r1, `"maxTokens":2`, `"maxTokens":3`, 1), wild))
	if take("/one") != 200 {
		t.Error("a bucket of another size did not begin full")
	}
	if take("/two") != 503 {
		t.Error("the bucket beside it was filled")
	}
}

func TestBucketsRefillContinuously(t *testing.T) {
	now := time.Unix(1000, 0)
	b, err := newBucket(fromJSON(&tokenBucket{}, `{"maxTokens":2,"tokensPerFill":1,"fillInterval":"10s"}`), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		after     time.Duration
		take      bool
		remaining int
		reset     int
	}{
		{0, true, 1, 0}, {0, true, 0, 10}, {0, false, 0, 10}, {4 * time.Second, false, 0, 6}, {6 * time.Second, true, 0, 10}, {time.Hour, true, 1, 0},
	} {
		now = now.Add(step.after)
		took := b.take()
		remaining, reset := b.remaining()
		if took != step.take || remaining != step.remaining || reset != step.reset {
			t.Errorf("step %d: %v %d %d, want %+v", i, took, remaining, reset, step)
		}
	}
}

func TestForgottenDescriptorsAreTheLeastRecentlyUsed(t *testing.T) {
	model, err := newBucket(fromJSON(&tokenBucket{}, `{"maxTokens":1,"tokensPerFill":1,"fillInterval":"3600s"}`), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w := newWildcardDescriptors(model, 2)
	a, b := w.bucket("a"), w.bucket("b")
	if w.bucket("a") != a {
		t.Error("a was forgotten")
	}
	w.bucket("c")
	if w.bucket("a") != a || w.bucket("b") == b {
		t.Error("not the least recently used was forgotten")
	}
}

func TestAFilterThatARouteSwitchesOffIsOff(t *testing.T) {
	rc := merged(fromJSON(routeConfiguration(), `{"typedPerFilterConfig":{"key-auth":`+on+`}}`))
	l := filterLab(t, res("muster", rc), catchAll(
		with("/off", `"key-auth":{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","disabled":true}`), with("/", `"cors":`+on)))
	for target, want := range map[string]int{"/": 401, "/off": 200} {
		if a := l.do("GET", target); a.status != want {
			t.Errorf("%s: %d, want %d", target, a.status, want)
		}
	}
}

func TestDescriptorsOfDifferentValuesAreDifferent(t *testing.T) {
	seen := map[string][]descriptorEntry{}
	for _, entries := range [][]descriptorEntry{
		{{"a", "1"}, {"b", "2"}}, {{"a", "1"}}, {{"a", ""}, {"b", ""}}, {{"a", "1:b2"}}, {{"a", "11:b1:2"}}, {{"a1", ""}}, {{"a", "1;b:2"}}, {{"a", "1"}, {"b", "2;b:2"}}, {{"a", "1;b:2"}, {"b", "2"}}, {{"", "a1"}},
	} {
		key := descriptorKey(entries)
		if other, ok := seen[key]; ok {
			t.Errorf("%v and %v share a bucket", entries, other)
		}
		seen[key] = entries
	}
}

func TestTheMostRestrictiveLimitIsAskedFirst(t *testing.T) {
	limit := func(rate int, name string) string {
		return fmt.Sprintf(`{"entries":[{"key":"generic_key","value":"%s"}],"tokenBucket":{"maxTokens":%d,"tokensPerFill":%d,"fillInterval":"3600s"}}`, name, rate, rate)
	}
	action := func(name string) string { return `{"actions":[{"genericKey":{"descriptorValue":"` + name + `"}}]}` }
	l := filterLab(t, limits(limit(3, "wide"), limit(1, "narrow")), catchAll(
		with("/both", `"limit-count":`+on, `,"rateLimits":[`+action("wide")+`,`+action("narrow")+`]`), with("/wide", `"limit-count":`+on, `,"rateLimits":[`+action("wide")+`]`)))
	for i, step := range []struct {
		target string
		want   int
	}{{"/both", 200}, {"/both", 503}, {"/both", 503}, {"/wide", 200}, {"/wide", 200}, {"/wide", 503}} {
		if a := l.do("GET", step.target); a.status != step.want {
			t.Errorf("request %d, %s: %d, want %d", i, step.target, a.status, step.want)
		}
	}
}

func TestTheDefaultLimitCountsWhatADescriptorMatchedOnlyWhenItIsTo(t *testing.T) {
	for always, want := range map[string]int{"true": 503, "false": 200} {
		m := fromJSON(&localratelimitv3.LocalRateLimit{}, `{"statPrefix":"l","status":{"code":503},"tokenBucket":{"maxTokens":1,"tokensPerFill":1,"fillInterval":"3600s"},
			"filterEnabled":{"defaultValue":{"numerator":100}},"filterEnforced":{"defaultValue":{"numerator":100}},"alwaysConsumeDefaultTokenBucket":`+always+`,
			"descriptors":[{"entries":[{"key":"generic_key","value":"r"}],"tokenBucket":{"maxTokens":9,"tokensPerFill":9,"fillInterval":"3600s"}}]}`)
		l := filterLab(t, res("limit-count", &corev3.TypedExtensionConfig{Name: "limit-count", TypedConfig: pack(m)}),
			catchAll(with("/", `"limit-count":`+on, `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"r"}}]}]`)))
		l.do("GET", "/")
		if a := l.do("GET", "/"); a.status != want {
			t.Errorf("always %s: %d, want %d", always, a.status, want)
		}
	}
}

func TestGlobalRulesHoldBesideThoseOfRoutes(t *testing.T) {
	mutate := func(name, value string) string {
		return typed(name, "header_mutation.v3.HeaderMutationPerRoute",
			`"mutations":{"requestMutations":[{"append":{"header":{"key":"x-rule","value":"`+value+`"}}}],"responseMutations":[{"append":{"header":{"key":"x-answer","value":"`+value+`"}}}]}`)
	}
	rc := fromJSON(routeConfiguration(), `{"typedPerFilterConfig":{`+mutate("global.proxy-rewrite", "global")+`}}`)
	rc = merged(rc)
	l := filterLab(t, res("muster", rc), catchAll(
		with("/both", mutate("proxy-rewrite", "route")),
		with("/global", `"cors":`+on),
		with("/not", `"global.proxy-rewrite":{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","disabled":true}`),
		tag("direct", `{"prefix":"/direct"}`),
	))
	for target, want := range map[string]string{"/both": "[global route] [route global]", "/global": "[global] [global]", "/not": "[] []"} {
		a := l.do("GET", target)
		if got := fmt.Sprint(a.seen.Header["X-Rule"], a.header["X-Answer"]); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if a := l.do("GET", "/direct"); a.header.Get("X-Answer") != "global" {
		t.Errorf("an answer of the gateway's own passed the global rule: %v", a.header)
	}
}

// merged adds what routeConfiguration has to a message that protojson has emptied.
func merged(rc *routev3.RouteConfiguration) *routev3.RouteConfiguration {
	full := routeConfiguration()
	full.TypedPerFilterConfig = rc.GetTypedPerFilterConfig()
	return full
}

func TestAnswersOfFiltersPassTheOtherFilters(t *testing.T) {
	l := filterLab(t, catchAll(with("/", `"key-auth":`+on+`,`+cors(`"allowOriginStringMatch":[{"exact":"http://a.com"}]`))))
	a := l.do("GET", "/", header("Origin", "http://a.com"))
	if a.status != 401 || a.header.Get("Access-Control-Allow-Origin") != "http://a.com" {
		t.Errorf("%d %v", a.status, a.header)
	}
}
