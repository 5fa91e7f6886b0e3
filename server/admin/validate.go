package admin

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

const (
	// maxChanges bounds one transaction: room for a group of 10,000 services with
	// their routes, synchronised at once.
	maxChanges = 50000
	// maxTransaction bounds the bytes of one transaction: it becomes one entry of
	// the replicated log.
	maxTransaction = 3 << 20
	// maxViolations bounds the problems in one answer, which travels in HTTP/2
	// trailers.
	maxViolations = 200
)

// validator judges objects as of now.
func (s *Service) validator() resource.Validator {
	return resource.Validator{Plugins: s.cfg.Plugins, Now: s.cfg.Now()}
}

// prepare checks the shape of a transaction. It returns normalised copies; the
// request stays as it is.
func (s *Service) prepare(req *musterv1.CommitRequest) ([]*musterv1.Change, error) {
	var vs []violation
	if len(req.GetMessage()) > state.MaxMessage {
		vs = append(vs, violation{"message", resource.CodeTooLarge, fmt.Sprintf("is longer than %d bytes", state.MaxMessage), ""})
	}
	if n := len(req.GetChanges()); n > maxChanges {
		return nil, &invalidError{append(vs, violation{"changes", resource.CodeTooLarge,
			fmt.Sprintf("has %d changes; the limit is %d", n, maxChanges), "split the transaction"})}
	}
	if n := proto.Size(req); n > maxTransaction {
		return nil, &invalidError{append(vs, violation{"changes", resource.CodeTooLarge,
			fmt.Sprintf("is %d bytes; the limit is %d", n, maxTransaction), "split the transaction"})}
	}
	changes := make([]*musterv1.Change, len(req.GetChanges()))
	first := map[resource.Key]int{}
	for i, c := range req.GetChanges() {
		path := fmt.Sprintf("changes[%d]", i)
		c = proto.CloneOf(c)
		changes[i] = c
		var key resource.Key
		switch a := c.GetAction().(type) {
		case *musterv1.Change_Put:
			key = resource.KeyOf(a.Put)
			if key.Kind == musterv1.Kind_KIND_UNSPECIFIED {
				vs = append(vs, violation{path + ".put", resource.CodeRequired, "holds no resource", "set one of its kinds, for example route"})
				continue
			}
			resource.Normalize(a.Put)
		case *musterv1.Change_Delete:
			key = resource.KeyFromProto(a.Delete)
			if resource.KindName(key.Kind) == "unknown" || key.ID == "" {
				vs = append(vs, violation{path + ".delete", resource.CodeRequired, "needs a known kind and an id", ""})
				continue
			}
		default:
			vs = append(vs, violation{path, resource.CodeRequired, "neither put nor delete is set", ""})
			continue
		}
		if j, twice := first[key]; twice {
			vs = append(vs, violation{path, resource.CodeDuplicate, fmt.Sprintf("%s is changed by changes[%d] already", key, j), "one change for each resource"})
		} else {
			first[key] = i
		}
	}
	if len(vs) > 0 {
		return nil, &invalidError{bounded(vs)}
	}
	return changes, nil
}

// checkObjects judges each object of a transaction by itself.
func (s *Service) checkObjects(changes []*musterv1.Change) error {
	v := s.validator()
	var vs []violation
	for i, c := range changes {
		if c.GetPut() == nil {
			continue
		}
		for _, p := range v.Resource(c.GetPut()) {
			vs = append(vs, violationAt(putPath(i, resource.KeyOf(c.GetPut())), p))
		}
	}
	if len(vs) > 0 {
		return &invalidError{bounded(vs)}
	}
	return nil
}

// checkReferences judges what a transaction changed beside what it stands with.
func (s *Service) checkReferences(after state.View, diff []state.Change) resource.Problems {
	keys := make([]resource.Key, len(diff))
	for i, c := range diff {
		keys[i] = c.Key
	}
	lookup := func(k resource.Key) (*musterv1.Resource, bool) {
		e, ok := after.Get(k)
		if !ok {
			return nil, false
		}
		return e.Resource, true
	}
	return s.validator().Group(lookup, append(keys, referrers(after, diff)...))
}

// referrers lists the objects whose references a transaction may have broken
// without touching them: the routes of a service that became one of another type.
// The rest the state machine looks after.
func referrers(after state.View, diff []state.Change) []resource.Key {
	var keys []resource.Key
	for _, c := range diff {
		if c.Before == nil || c.After == nil || c.Before.Resource.GetService().GetType() == c.After.Resource.GetService().GetType() {
			continue
		}
		for e := range after.RoutesOf(c.Key.ID) {
			keys = append(keys, e.Key)
		}
		for e := range after.StreamRoutesOf(c.Key.ID) {
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// violationsOf places problems in a request: under the change that touches the
// object, or, where another object is at fault, under its name.
func violationsOf(problems resource.Problems, changes []*musterv1.Change) []violation {
	index := map[resource.Key]int{}
	for i, c := range changes {
		if c.GetPut() != nil {
			index[resource.KeyOf(c.GetPut())] = i
		} else {
			index[resource.KeyFromProto(c.GetDelete())] = i
		}
	}
	vs := make([]violation, 0, len(problems))
	for _, p := range problems {
		i, touched := index[p.Object]
		switch {
		case strings.HasPrefix(p.Path, "changes["):
			vs = append(vs, violationAt("", p))
		case !touched && p.Object != (resource.Key{}):
			vs = append(vs, violationAt(p.Object.String(), p))
		case !touched:
			vs = append(vs, violationAt("", p))
		case changes[i].GetPut() != nil:
			vs = append(vs, violationAt(putPath(i, p.Object), p))
		default:
			vs = append(vs, violationAt(fmt.Sprintf("changes[%d].delete", i), resource.Problem{
				Code: p.Code, Message: p.Message, Hint: p.Hint,
			}))
		}
	}
	return bounded(vs)
}

func putPath(i int, key resource.Key) string {
	return fmt.Sprintf("changes[%d].put.%s", i, resource.KindName(key.Kind))
}

func violationAt(prefix string, p resource.Problem) violation {
	field := p.Path
	switch {
	case field == "":
		field = prefix
	case prefix != "" && strings.HasPrefix(field, "["):
		field = prefix + field
	case prefix != "":
		field = prefix + "." + field
	}
	return violation{field: field, code: p.Code, message: p.Message, hint: p.Hint}
}

func bounded(vs []violation) []violation {
	if len(vs) <= maxViolations {
		return vs
	}
	more := violation{code: resource.CodeTooLarge, message: fmt.Sprintf("%d more problems are not listed", len(vs)-maxViolations)}
	return append(vs[:maxViolations:maxViolations], more)
}
