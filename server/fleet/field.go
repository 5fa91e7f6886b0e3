package fleet

import (
	"regexp"
	"strings"
	"unicode"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// validationStep finds the steps of a chain that protoc-gen-validate writes:
// `ClusterValidationError.ConnectTimeout: ... | caused by: ...`, or with an
// index, `RouteValidationError.Match[0]`.
var validationStep = regexp.MustCompile(`([A-Za-z0-9_]+)ValidationError\.([A-Za-z0-9_]+(?:\[[^\]]*\])?)`)

// fieldHints lead from words in a refusal to the field of the object that
// usually stands behind them, by the object's kind. The first match wins.
var fieldHints = map[musterv1.Kind][]struct{ word, field string }{
	musterv1.Kind_KIND_SSL: {
		{"private key", "key"}, {"private_key", "key"}, {"certificate chain", "cert"},
		{"trusted_ca", "client.ca"}, {"server_names", "snis"}, {"certificate", "cert"},
	},
	musterv1.Kind_KIND_SERVICE: {
		{"domains", "hosts"}, {"health_check", "upstream.checks"}, {"tls", "upstream.tls"},
		{"endpoint", "upstream.nodes"}, {"address", "upstream.nodes"}, {"timeout", "upstream.timeout"},
	},
	musterv1.Kind_KIND_ROUTE: {
		{"regex", "vars"}, {"domains", "hosts"}, {"prefix", "uris"}, {"path", "uris"},
		{"endpoint", "upstream.nodes"}, {"timeout", "timeout"},
	},
	musterv1.Kind_KIND_CREDENTIAL: {{"credential", "plugins"}},
	musterv1.Kind_KIND_CONSUMER:   {{"credential", "plugins"}},
}

// fieldOf guesses the field of an object that a refusal is about. For a raw
// xds_resource it is a path in the message and exact where the data plane's
// validation names one; for compiled objects it is best effort. Empty when
// nothing can be told.
func fieldOf(origin resource.Key, detail string) string {
	if origin.Kind == musterv1.Kind_KIND_XDS_RESOURCE {
		return messagePath(detail)
	}
	lower := strings.ToLower(detail)
	for _, h := range fieldHints[origin.Kind] {
		if strings.Contains(lower, h.word) {
			return h.field
		}
	}
	return ""
}

// leadingPath is the field with which the embedded gateway begins what it says:
// `load_assignment.endpoints[0]: is not supported`.
var leadingPath = regexp.MustCompile(`^([a-z][a-z0-9_]*(?:\[[0-9]+\])?(?:\.[a-z][a-z0-9_]*(?:\[[0-9]+\])?)*): `)

func messagePath(detail string) string {
	if m := leadingPath.FindStringSubmatch(detail); m != nil {
		return "resource." + m[1]
	}
	steps := validationStep.FindAllStringSubmatch(detail, -1)
	if len(steps) == 0 {
		return ""
	}
	path := "resource"
	for _, s := range steps {
		path += "." + snakeCase(s[2])
	}
	return path
}

// snakeCase turns the Go name of a field into the proto's: LbEndpoints[0]
// becomes lb_endpoints[0].
func snakeCase(name string) string {
	var b strings.Builder
	for i, c := range name {
		if unicode.IsUpper(c) {
			if i > 0 {
				b.WriteByte('_')
			}
			c = unicode.ToLower(c)
		}
		b.WriteRune(c)
	}
	return b.String()
}
