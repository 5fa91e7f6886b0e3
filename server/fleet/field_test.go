package fleet

import (
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func TestTheFieldBehindARefusal(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   musterv1.Kind
		detail string
		want   string
	}{
		{
			"a raw message's path is exact", musterv1.Kind_KIND_XDS_RESOURCE,
			"Error adding/updating cluster(s) bad: Proto constraint validation failed (ClusterValidationError.ConnectTimeout: value must be greater than 0s)",
			"resource.connect_timeout",
		},
		{
			"a nested raw message's too", musterv1.Kind_KIND_XDS_RESOURCE,
			"(ClusterValidationError.LoadAssignment: embedded message failed validation | caused by ClusterLoadAssignmentValidationError.Endpoints[0]: embedded | caused by LocalityLbEndpointsValidationError.Priority: value must be <= 128)",
			"resource.load_assignment.endpoints[0].priority",
		},
		{"as the embedded gateway says it", musterv1.Kind_KIND_XDS_RESOURCE, "load_assignment.endpoints[0].priority: is not supported", "resource.load_assignment.endpoints[0].priority"},
		{"words before a colon are no path", musterv1.Kind_KIND_XDS_RESOURCE, "Error adding cluster: no", ""},
		{"a raw message without a path", musterv1.Kind_KIND_XDS_RESOURCE, "unknown cluster 'x'", ""},
		{"a key", musterv1.Kind_KIND_SSL, "Failed to load private key from <inline>, Cause: key mismatch", "key"},
		{"a certificate", musterv1.Kind_KIND_SSL, "Failed to load certificate chain from <inline>", "cert"},
		{"domains of a service", musterv1.Kind_KIND_SERVICE, "Only unique values for domains are permitted", "hosts"},
		{"nothing known", musterv1.Kind_KIND_SERVICE, "no", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fieldOf(resource.Key{Kind: c.kind, ID: "x"}, c.detail); got != c.want {
				t.Fatalf("fieldOf = %q, want %q", got, c.want)
			}
		})
	}
}

func TestWhatADataPlaneSaidIsShownWithoutSecretsAndDumps(t *testing.T) {
	for name, c := range map[string]struct{ said, want string }{
		"plain": {"unknown cluster 'x'", "unknown cluster 'x'"},
		"a dump of the message": {
			"goo.gle/debugproto    \nname: \"bad\"\ntls_certificate {\n private_key {\n inline_string: \"hush\" } }\n: Proto constraint validation failed (XValidationError.Y: no)",
			"Proto constraint validation failed (XValidationError.Y: no)",
		},
		"a private key":             {"cannot load -----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY----- here", "cannot load *** here"},
		"a private key, escaped":    {`key: "-----BEGIN PRIVATE KEY-----\nMIIE\n" and more`, `key: "***" and more`},
		"a private key, cut short":  {"bad: -----BEGIN PRIVATE KEY-----\nMIIEvQ", "bad: ***"},
		"a secret field":            {`refused inline_string: "hu\"sh" there`, `refused inline_string: "***" there`},
		"a secret field of JSON":    {`refused {"inline_string": "hu\"sh","a":"b"} there`, `refused {"inline_string": "***","a":"b"} there`},
		"JSON's own names":          {`refused {"inlineBytes":"aHVzaA==", "x-api-Key" : "hush"}`, `refused {"inlineBytes":"***", "x-api-Key" : "***"}`},
		"a secret field, cut short": {`refused password: "hus`, `refused password: "***"`},
		"not UTF-8":                 {"bad \xff byte", "bad � byte"},
	} {
		if got := cleanDetail(c.said); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
