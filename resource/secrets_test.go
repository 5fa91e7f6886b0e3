package resource_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// canary is in every secret of secretFile and nowhere else.
const canary = "CANARY"

// secretFile is a file with a secret in every place that may hold one.
const secretFile = `services:
  - name: s
    upstream:
      scheme: https
      nodes: [{host: h, port: 443}]
      tls:
        client_cert: "x"
        client_key: CANARY-client-key
      checks:
        active:
          req_headers: ["Authorization: Bearer CANARY-header"]
    plugins:
      limit-count: {count: 1, policy: redis, redis_password: CANARY-redis}
      openid-connect: {client_id: x, client_secret: CANARY-oidc, session: {secret: CANARY-session}}
      http-logger: {uri: "https://user:CANARY-url@logs.example.com/", auth_header: CANARY-auth}
    routes:
      - name: r
        uris: [/a]
        plugins:
          proxy-rewrite:
            headers: {set: {X-Api-Key: CANARY-set, Authorization: "Basic CANARY-basic"}}
          jwt-auth: {secret: CANARY-jwt}
ssls:
  - snis: [a.example.com]
    certificates:
      - certificate: "x"
        key: |
          -----BEGIN PRIVATE KEY-----
          CANARYkeyline1
          -----END PRIVATE KEY-----
      - certificate: "x"
        key: "CANARY-second"
consumers:
  - username: alice
    plugins:
      key-auth: {key: CANARY-consumer}
    credentials:
      - {name: k, type: key-auth, config: {key: CANARY-key}}
      - {name: b, type: basic-auth, config: {username: alice, password: CANARY-password}}
      - {name: n, type: basic-auth, config: {username: alice, password: "CANARY 5: five"}}
      - {name: j, type: jwt-auth, config: {key: CANARY-jwtkey, secret: CANARY-jwtsecret, algorithm: HS256}}
      - {name: u, type: hmac-auth, config: {key_id: CANARY-id, anything: [CANARY-list, {deep: CANARY-deep}]}}
plugin_metadata:
  http-logger: {password: CANARY-metadata}
xds_resources:
  - id: raw
    resource:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: shown
      tls_certificate:
        certificate_chain: {filename: shown.pem}
        private_key: {inline_string: CANARY-xds}
        password: {inline_string: CANARY-xdspassword}
  - id: ticket
    resource:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: ticket
      session_ticket_keys: {keys: [{inline_string: CANARY-ticket}]}
  - id: unknown
    resource: {"@type": type.googleapis.com/vendor.Unknown, "@bytes": "Q0FOQVJZ"}
`

func leaks(text string) bool {
	return strings.Contains(text, canary) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(canary)))
}

func secretResources(t *testing.T) *resource.File {
	t.Helper()
	file, problems := resource.DecodeFile("f", []byte(secretFile))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return file
}

func TestRedactLeavesNoSecretAndTheRest(t *testing.T) {
	file := secretResources(t)
	public := map[string]string{
		"service": "policy", "ssl": "a.example.com", "consumer": "alice", "xds_resource": "type.googleapis.com", "route": "/a",
	}
	for _, r := range file.Resources {
		key := resource.KeyOf(r)
		before := proto.CloneOf(r)
		redacted := resource.Redact(r)
		if !proto.Equal(before, r) {
			t.Errorf("%s: Redact changed its argument", key)
		}
		if resource.KeyOf(redacted) != key {
			t.Errorf("%s became %s", key, resource.KeyOf(redacted))
		}
		wire, err := proto.Marshal(redacted)
		if err != nil {
			t.Fatal(err)
		}
		object, err := resource.EncodeObject(redacted)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(wire), string(object), redacted.String()} {
			if leaks(text) {
				t.Errorf("%s leaks: %s", key, text)
			}
		}
		if want := public[resource.KindName(key.Kind)]; !strings.Contains(string(object), want) {
			t.Errorf("%s: lost %q: %s", key, want, object)
		}
		if again := resource.Redact(redacted); !proto.Equal(again, redacted) {
			t.Errorf("%s: redacting twice is not redacting once", key)
		}
	}
	if resource.Redact(nil) != nil {
		t.Error("Redact(nil) is not nil")
	}
}

func TestRedactKeepsWhatIsNoSecret(t *testing.T) {
	for _, text := range []string{
		`{"id":"r","paths":["/a"],"plugins":{"key-auth":{"header":"apikey","hide_credentials":true},"limit-count":{"count":5,"key":"remote_addr","key_type":"var"},"cors":{"allow_credential":true}}}`,
		`{"id":"r","paths":["/a:b"],"vars":[["http_x","==","a:b"]],"desc":"see https://example.com/x@y"}`,
	} {
		r, _, problems := resource.DecodeObject(musterv1.Kind_KIND_ROUTE, []byte(text))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if redacted := resource.Redact(r); !proto.Equal(r, redacted) {
			t.Errorf("%s became %s", text, protojson.Format(redacted))
		}
	}
}

func TestDiffMasksSecretsAndStillShowsThatTheyChanged(t *testing.T) {
	for _, r := range secretResources(t).Resources {
		for _, diffs := range [][]resource.FieldDiff{resource.DiffFields(nil, r), resource.DiffFields(r, nil), resource.DiffFields(resource.Redact(r), r)} {
			if text := fmt.Sprint(diffs); leaks(text) {
				t.Errorf("%s leaks: %s", resource.KeyOf(r), text)
			}
		}
	}
	before := &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Key: "CANARY1"}}}
	after := &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Key: "CANARY2"}}}
	got := resource.DiffFields(before, after)
	if len(got) != 1 || got[0] != (resource.FieldDiff{Path: "key", Before: `"***"`, After: `"***"`}) {
		t.Errorf("got %+v", got)
	}
}

// Whatever is wrong with a text that holds secrets, problems do not show them:
// the text is broken at random, and every problem and excerpt is searched.
func TestProblemsNeverShowASecret(t *testing.T) {
	check := func(t *rapid.T, ps resource.Problems) {
		for _, p := range ps {
			if leaks(p.String()) || leaks(p.Excerpt) {
				t.Fatalf("%s\n%s", p, p.Excerpt)
			}
		}
	}
	file, _ := resource.DecodeFile("f", []byte(secretFile))
	if file == nil {
		t.Fatal("the file cannot be read")
	}
	var objects []string
	var kinds []musterv1.Kind
	for _, r := range file.Resources {
		text, err := resource.EncodeObject(r)
		if err != nil {
			t.Fatal(err)
		}
		objects, kinds = append(objects, string(text)), append(kinds, resource.KeyOf(r).Kind)
	}
	rapid.Check(t, func(t *rapid.T) {
		which := rapid.IntRange(-1, len(objects)-1).Draw(t, "which")
		text := secretFile
		if which >= 0 {
			text = objects[which]
		}
		for range rapid.IntRange(1, 3).Draw(t, "edits") {
			at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
			// The canary itself stays whole, or it could not be found.
			if i := strings.LastIndex(text[:min(len(text), at+len(canary))], canary); i >= 0 && at < i+len(canary) && at > i-1 {
				continue
			}
			switch rapid.IntRange(0, 3).Draw(t, "edit") {
			case 0:
				text = text[:at] + text[at+1:]
			case 1:
				text = text[:at] + rapid.SampledFrom([]string{"x", ":", " ", "\n", "[", "}", `"`, "'", "- ", "# ", "1", "é"}).Draw(t, "insert") + text[at:]
			case 2:
				// A key or value is written in another way.
				from := rapid.SampledFrom([]string{"key", "password", "config", "snis", "plugins", "client_key", "certificates", "type", "headers", "resource"}).Draw(t, "from")
				text = strings.Replace(text, from+":", rapid.SampledFrom([]string{"keyy", "Key", "[x]", "x", "id", "name"}).Draw(t, "to")+":", 1)
			case 3:
				text = text[:at]
			}
			if text == "" {
				return
			}
		}
		if which < 0 {
			file, problems := resource.DecodeFile("f", []byte(text))
			check(t, problems)
			if file != nil {
				check(t, resource.Validator{Plugins: knownPlugins{}, Now: now}.File(file, nil))
			}
			return
		}
		r, positions, problems := resource.DecodeObject(kinds[which], []byte(text))
		check(t, problems)
		if r != nil {
			check(t, positions.Locate(resource.Validator{Plugins: knownPlugins{}, Now: now}.Resource(r)))
		}
	})
}

func TestProblemsOfCertificatesNeverShowTheKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	secret := strings.Split(text, "\n")[1]
	swapped := &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Snis: []string{"a"}, Cert: text, Key: "x" + text[5:]}}}
	object, err := resource.EncodeObject(swapped)
	if err != nil {
		t.Fatal(err)
	}
	_, positions, problems := resource.DecodeObject(musterv1.Kind_KIND_SSL, object)
	problems = append(problems, positions.Locate(resource.Validate(swapped))...)
	if len(problems) < 2 {
		t.Fatalf("got %v", problems)
	}
	for _, p := range problems {
		if strings.Contains(p.String()+p.Excerpt, secret) {
			t.Errorf("leaks: %s\n%s", p, p.Excerpt)
		}
	}
}
