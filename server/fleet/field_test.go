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
