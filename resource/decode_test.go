package resource_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func TestEveryPlaceCanBeFound(t *testing.T) {
	const text = `services:
  - name: s
    host: x
    upstream:
      nodes: {"a:80": 1, "b:80": 2}
    routes:
      - name: r
        uri: /x
        plugins:
          limit-count:
            count: 5
consumers:
  - username: u
    credentials:
      - name: k
        type: key-auth
        config:
          key: secret
ssls:
  - snis: [a.example.com]
    certificates:
      - {certificate: c0, key: k0}
      - {certificate: c1, key: k1}
plugin_metadata:
  cors:
    x: 1
`
	file, problems := resource.DecodeFile("f.yaml", []byte(text))
	if len(problems) != 1 || problems[0].Path != "services[0].host" {
		t.Fatal(problems)
	}
	ids := map[string]resource.Key{}
	for _, r := range file.Resources {
		ids[resource.KindName(resource.KeyOf(r).Kind)] = resource.KeyOf(r)
	}
	for _, test := range []struct{ kind, path, want string }{
		{"service", "", "2:5"},
		{"service", "upstream.nodes[1].weight", "5:34"},
		{"service", "upstream.nodes[1].port", "5:26"},
		{"service", "upstream.nodes[7]", "5:14"},
		{"service", "upstream.timeout.read", "4:5"},
		{"service", "desc", "2:5"},
		{"route", "", "7:9"},
		{"route", "uris[0]", "8:14"},
		{"route", "plugins.limit-count.count", "11:20"},
		{"route", "plugins.limit-count.window", "10:11"},
		{"credential", "plugins", "15:9"},
		{"credential", "plugins.key-auth.key", "18:16"},
		{"ssl", "cert", "22:23"},
		{"ssl", "key", "22:32"},
		{"ssl", "certs[0]", "23:23"},
		{"ssl", "keys[0]", "23:32"},
		{"plugin_metadata", "metadata.x", "26:8"},
	} {
		name, line, col, excerpt, ok := file.Positions.At(ids[test.kind], test.path)
		if got := fmt.Sprintf("%d:%d", line, col); got != test.want || !ok || name != "f.yaml" || !strings.Contains(excerpt, "^") {
			t.Errorf("%s %s is at %s, want %s", test.kind, test.path, got, test.want)
		}
	}
	if _, _, _, _, ok := file.Positions.At(resource.Key{Kind: 1, ID: "other"}, ""); ok {
		t.Error("an object that is not in the file has a place")
	}
	if _, _, _, _, ok := (resource.Positions{}).At(ids["service"], ""); ok {
		t.Error("no text has a place")
	}
}

func TestTheIDsOfAFileAreThoseOfADC(t *testing.T) {
	file, problems := resource.DecodeFile("f", []byte(`
services:
  - {name: svc, upstream: {nodes: []}, upstreams: [{name: up, nodes: []}], routes: [{name: r1, uris: [/a]}]}
  - {name: tcp, upstream: {scheme: tcp, nodes: []}, stream_routes: [{name: sr}]}
ssls:
  - {snis: [a.example.com, b.example.com], certificates: []}
consumers:
  - {username: alice, credentials: [{name: k, type: key-auth, config: {key: x}}]}
global_rules: {cors: {}}
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []string
	for _, r := range file.Resources {
		got = append(got, resource.KeyOf(r).String())
		for _, u := range r.GetService().GetUpstreams() {
			got = append(got, "upstream/"+u.GetId())
		}
	}
	// By sha1sum of `svc`, `svc.up`, `svc.r1`, `tcp`, `tcp.sr`,
	// `a.example.com,b.example.com` and `alice.k`.
	want := []string{
		"service/" + sha1svc, "upstream/" + sha1svcUp, "route/" + sha1svcR1, "service/" + sha1tcp, "stream_route/" + sha1tcpSr,
		"ssl/" + sha1snis, "consumer/alice", "credential/alice/" + sha1aliceK, "global_rule/cors",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

const (
	sha1svc    = "a0089182becd921781d5ba1e58fa4d129b24060f"
	sha1svcUp  = "ea5f6e167442828262f646fc57c29a3beb810d9a"
	sha1svcR1  = "cbe0bc426f9facd523926c9c7774548aebd7a5dc"
	sha1tcp    = "6ce375e315d720af2ba683096f660d623f64151f"
	sha1tcpSr  = "78a56e66974ad9583d10bb8a3b73f20badf9f6a0"
	sha1snis   = "3ba2e9503733b5dd9f77fce92ff1e912fb293f38"
	sha1aliceK = "da62352b660d1cb00730971d8d4308915c2ead64"
)

// What YAML makes of values, and what of them is refused.
func TestYAMLValues(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"words":         {"desc: yes", `{"desc":"yes"}`},
		"a tag":         {"desc: !!str 5", `{"desc":"5"}`},
		"quoted digits": {`desc: "007"`, `{"desc":"007"}`},
		"hexadecimal":   {"priority: 0x1f", `{"priority":31}`},
		"underscores":   {"priority: 1_000", `{"priority":1000}`},
		"an exponent":   {"priority: 1e3", `{"priority":1000}`},
		"a whole float": {"priority: 80.0", `{"priority":80}`},
		"a plus":        {"priority: +5", `{"priority":5}`},
		"nulls":         {"desc: ~\nhosts:\ntimeout: null", `{}`},
		"literal":       {"desc: |\n  a\n  b\n", "{\"desc\":\"a\\nb\\n\"}"},
		"folded":        {"desc: >-\n  a\n  b", `{"desc":"a b"}`},
		"JSON escapes":  {`{"desc":"\u00e9\ud83d\ude00\/"}`, `{"desc":"é😀/"}`},
		"YAML escapes":  {`desc: "\u00e9\t"`, `{"desc":"é\t"}`},
		"a BOM":         {"\ufeffdesc: x", `{"desc":"x"}`},
		"CR LF":         {"desc: x\r\nname: y\r\n", `{"name":"y","desc":"x"}`},
		"a comment":     {"desc: x # y", `{"desc":"x"}`},
		"empty lists":   {"hosts: []\nplugins: {}\nvars: []", `{"vars":[]}`},

		"leading zero":    {"priority: 010", "1:11: a number that begins with 0 is read as octal by some and as decimal by others (remove the 0, or quote the value if it is a string)"},
		"infinity":        {"timeout: {read: .inf}", "1:17: infinity and NaN are not numbers here"},
		"a custom tag":    {"desc: !secret x", "1:7: this YAML tag is not supported (remove it; of tags only those of the core schema that fit the value are read)"},
		"a wrong tag":     {"desc: !!int x", "1:7: this YAML tag is not supported (remove it; of tags only those of the core schema that fit the value are read)"},
		"a boolean":       {"desc: true", "1:7: desc: value must be a string, not a boolean (put it in quotes)"},
		"an unknown name": {"desc: *x", "1:8: the alias names no anchor before it (write `&name` before the value that `*name` repeats)"},
		"a strange merge": {"<<: 5", "1:5: `<<` merges objects only (refer to an anchor that holds an object)"},
		"a list":          {"- a", "1:1: value must be an object, not a list"},
		"nothing":         {"", "1:1: value must be an object, not null (write {} for an object without fields)"},
		"a twin":          {"desc: a\ndesc: b", "2:1: desc: the field is given twice (remove one)"},
		"twins in JSON":   {`{"plugins":{"cors":{},"cors":{}}}`, "1:23: plugins.cors: the key is given twice (remove one)"},
		"a comma":         {`{"desc":"x",}`, "1:13: this is not JSON: invalid character '}' looking for beginning of object key string"},
		"two values":      {`{} {}`, "1:4: there is more text after the end of the JSON value"},
		"an end":          {`{"desc":`, "1:9: the JSON ends too early"},
		"bytes":           {"desc: \xff", "1:7: the text is not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, problems := resource.DecodeObject(musterv1.Kind_KIND_ROUTE, []byte(test.text))
			got := ""
			if len(problems) > 0 {
				got = problems.Error()
			} else {
				text, err := resource.EncodeObject(r)
				if err != nil {
					t.Fatal(err)
				}
				got = string(text)
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A control plane of API7 keeps zeros apart from absence where its tools send
// them: what was given comes back, what was not does not.
func TestWhatIsGivenComesBackAndNothingElse(t *testing.T) {
	for _, text := range []string{
		`{"id":"r","paths":["/"],"priority":0,"upstream":{"nodes":[{"host":"a","port":80,"weight":0,"priority":0}],"retries":0,"retry_timeout":0,"timeout":{},"keepalive_pool":{"size":320,"idle_timeout":60,"requests":1000},"tls":{"verify":false},"checks":{"active":{"timeout":1,"concurrency":10,"https_verify_certificate":false,"healthy":{}}}},"enable_websocket":false,"status":0}`,
		`{"id":"r","paths":["/"],"vars":[],"timeout":{"connect":0.5},"plugins":{"cors":{},"x":{"a":null,"b":[],"c":{},"d":1.5,"e":10000000000,"f":false}}}`,
		`{"id":"r","paths":["/"]}`,
	} {
		got, err := resource.EncodeObject(object(t, musterv1.Kind_KIND_ROUTE, text))
		if err != nil || string(got) != text {
			t.Errorf("gave %s\ngot  %s %v", text, got, err)
		}
	}
	// Of a service the type is always given back: API7's tools need it.
	got, err := resource.EncodeObject(object(t, musterv1.Kind_KIND_SERVICE, `{"id":"s","strip_path_prefix":false,"enable_websocket":false}`))
	if err != nil || string(got) != `{"id":"s","type":"http","strip_path_prefix":false,"enable_websocket":false}` {
		t.Errorf("got %s %v", got, err)
	}
}

func TestBytesOfACertificateStayAsTheyAre(t *testing.T) {
	for _, cert := range []string{"a\nb\n", "a\nb", "a\r\nb\r\n", "a\nb\n\n", " a\nb \n", "\ta\n"} {
		r := &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Cert: cert, Key: cert}}}
		text, err := resource.EncodeFile([]*musterv1.Resource{r})
		if err != nil {
			t.Fatal(err)
		}
		file, problems := resource.DecodeFile("f", text)
		if len(problems) > 0 || file.Resources[0].GetSsl().GetCert() != cert || file.Resources[0].GetSsl().GetKey() != cert {
			t.Errorf("%q became %v %v\n%s", cert, file, problems, text)
		}
	}
}
