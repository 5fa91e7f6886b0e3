package state

import (
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// equalContent compares two resources of one key without the times, which the
// state itself sets.
func equalContent(stored, other *musterv1.Resource) bool {
	create, update := timesOf(stored)
	otherCreate, otherUpdate := timesOf(other)
	if create == nil || otherCreate == nil || (*create == *otherCreate && *update == *otherUpdate) {
		return proto.Equal(stored, other)
	}
	other = proto.CloneOf(other)
	otherCreate, otherUpdate = timesOf(other)
	*otherCreate, *otherUpdate = *create, *update
	return proto.Equal(stored, other)
}

// timesOf points at a resource's times; nil for a kind that has none.
func timesOf(r *musterv1.Resource) (create, update *int64) {
	switch k := r.GetKind().(type) {
	case *musterv1.Resource_Service:
		return &k.Service.CreateTime, &k.Service.UpdateTime
	case *musterv1.Resource_Route:
		return &k.Route.CreateTime, &k.Route.UpdateTime
	case *musterv1.Resource_StreamRoute:
		return &k.StreamRoute.CreateTime, &k.StreamRoute.UpdateTime
	case *musterv1.Resource_Consumer:
		return &k.Consumer.CreateTime, &k.Consumer.UpdateTime
	case *musterv1.Resource_Credential:
		return &k.Credential.CreateTime, &k.Credential.UpdateTime
	case *musterv1.Resource_Ssl:
		return &k.Ssl.CreateTime, &k.Ssl.UpdateTime
	case *musterv1.Resource_GlobalRule:
		return &k.GlobalRule.CreateTime, &k.GlobalRule.UpdateTime
	case *musterv1.Resource_XdsResource:
		return &k.XdsResource.CreateTime, &k.XdsResource.UpdateTime
	}
	return nil, nil
}
