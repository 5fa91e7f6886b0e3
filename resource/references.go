package resource

import (
	"fmt"
	"iter"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Reference is one object's mention of another.
type Reference struct {
	// Path is the field that holds it.
	Path string
	// To is the object that must exist.
	To Key
}

// References returns what the resource refers to.
func References(r *musterv1.Resource) []Reference {
	var refs []Reference
	service := func(id string) {
		if id != "" {
			refs = append(refs, Reference{"service_id", Key{musterv1.Kind_KIND_SERVICE, id}})
		}
	}
	upstream := func(path string, u *musterv1.Upstream) {
		if id := u.GetTls().GetClientCertId(); id != "" {
			refs = append(refs, Reference{joinPath(path, "tls.client_cert_id"), Key{musterv1.Kind_KIND_SSL, id}})
		}
	}
	switch kind := r.GetKind().(type) {
	case *musterv1.Resource_Service:
		upstream("upstream", kind.Service.GetUpstream())
		for i, u := range kind.Service.GetUpstreams() {
			upstream(joinPath("upstreams", indexSegment(i)), u)
		}
	case *musterv1.Resource_Route:
		service(kind.Route.GetServiceId())
		upstream("upstream", kind.Route.GetUpstream())
	case *musterv1.Resource_StreamRoute:
		service(kind.StreamRoute.GetServiceId())
		upstream("upstream", kind.StreamRoute.GetUpstream())
	case *musterv1.Resource_Credential:
		if username := kind.Credential.GetConsumer(); username != "" {
			refs = append(refs, Reference{"consumer", Key{musterv1.Kind_KIND_CONSUMER, username}})
		}
	}
	return refs
}

// Group returns what is wrong between objects: the references of those named in
// changed that lead nowhere, or to an object of the wrong type. lookup sees the
// group as it is after the change; a changed key that it does not find was
// deleted. What refers to a changed object is judged only if it is in changed
// too.
func (v Validator) Group(lookup func(Key) (*musterv1.Resource, bool), changed []Key) Problems {
	inChange := make(map[Key]bool, len(changed))
	for _, key := range changed {
		inChange[key] = true
	}
	var problems Problems
	for _, key := range changed {
		r, found := lookup(key)
		if !found {
			continue
		}
		for _, ref := range References(r) {
			target, found := lookup(ref.To)
			if p := v.reference(r, ref, target, found, inChange[ref.To]); p.Code != "" {
				p.Object, p.Path = key, ref.Path
				problems = append(problems, p)
			}
		}
	}
	return problems
}

// reference judges one reference; the zero Problem is none.
func (v Validator) reference(r *musterv1.Resource, ref Reference, target *musterv1.Resource, found, changed bool) Problem {
	kind := KindName(ref.To.Kind)
	if !found {
		if changed {
			return Problem{Code: CodeReferenced, Message: fmt.Sprintf("%s %q is deleted, but is still referred to", kind, ref.To.ID), Hint: "change or delete this object too"}
		}
		hint := fmt.Sprintf("create the %s before, or in the same transaction", kind)
		if v.IDs != nil {
			if name := nearest(ref.To.ID, v.IDs(ref.To.Kind)); name != "" {
				hint = fmt.Sprintf("did you mean %q?", name)
			}
		}
		return Problem{Code: CodeReference, Message: fmt.Sprintf("%s %q does not exist", kind, ref.To.ID), Hint: hint}
	}
	switch {
	case target.GetSsl() != nil && target.GetSsl().GetType() != "client":
		return Problem{Code: CodeReference, Message: fmt.Sprintf("ssl %q is not of type client", ref.To.ID), Hint: "refer to an ssl of type client"}
	case r.GetRoute() != nil && target.GetService().GetType() == "stream":
		return Problem{Code: CodeReference, Message: fmt.Sprintf("service %q is of type stream, which has stream routes only", ref.To.ID), Hint: "make it a stream_route, or refer to a service of type http"}
	case r.GetStreamRoute() != nil && target.GetService() != nil && target.GetService().GetType() != "stream":
		return Problem{Code: CodeReference, Message: fmt.Sprintf("service %q is not of type stream", ref.To.ID), Hint: "set the service's type to stream, or refer to one that is"}
	}
	return Problem{}
}

// Conflicts returns what objects of a group exclude each other, given all its
// ssls, consumers and credentials; others are passed over. Two enabled server
// certificates cannot serve the same SNI, and two consumers cannot prove who
// they are by the same key or username. The problem is put on the later object.
func (v Validator) Conflicts(objects iter.Seq[*musterv1.Resource]) Problems {
	var problems Problems
	taken := map[[2]string]Key{}
	claim := func(key Key, path, space, name, message, hint string) {
		before, isTaken := taken[[2]string{space, name}]
		if !isTaken {
			taken[[2]string{space, name}] = key
			return
		}
		if before != key {
			problems = append(problems, Problem{Object: key, Path: path, Code: CodeConflict, Message: fmt.Sprintf(message, before), Hint: hint})
		}
	}
	for r := range objects {
		key := KeyOf(r)
		if ssl := r.GetSsl(); ssl != nil && ssl.GetType() != "client" && (ssl.Status == nil || ssl.GetStatus() != 0) {
			for i, sni := range ssl.GetSnis() {
				claim(key, joinPath("snis", indexSegment(i)), "sni", foldHost(sni), quote(sni)+" is served by %s already", "remove the name from one of them")
			}
		}
		plugins := r.GetConsumer().GetPlugins()
		if r.GetCredential() != nil {
			plugins = r.GetCredential().GetPlugins()
		}
		for _, plugin := range sortedKeys(plugins) {
			field := identityFields[plugin]
			identity, isString := stringOf(plugins[plugin].GetFields()[field])
			if field != "" && isString && identity != "" {
				claim(key, FieldPath("plugins", plugin, field), plugin, identity, "%s has the same "+field, "give each consumer its own")
			}
		}
	}
	return problems
}

// identityFields are the fields of auth plugins' credentials by which a request
// finds its consumer.
var identityFields = map[string]string{"key-auth": "key", "basic-auth": "username", "jwt-auth": "key", "hmac-auth": "key_id"}

// File returns what is wrong with the objects of a decoded file, each by itself
// and in their relations, with their places in the file. lookup finds the
// objects to which a file may refer without holding them; nil finds none. Of
// fields with which decoding had problems nothing is said again.
func (v Validator) File(f *File, lookup func(Key) (*musterv1.Resource, bool)) Problems {
	own := make(map[Key]*musterv1.Resource, len(f.Resources))
	keys := make([]Key, 0, len(f.Resources))
	var problems Problems
	for _, r := range f.Resources {
		own[KeyOf(r)] = r
		keys = append(keys, KeyOf(r))
		problems = append(problems, v.Resource(r)...)
	}
	outside := v.IDs
	v.IDs = func(kind musterv1.Kind) []string {
		var ids []string
		for _, key := range keys {
			if key.Kind == kind {
				ids = append(ids, key.ID)
			}
		}
		if outside != nil {
			ids = append(ids, outside(kind)...)
		}
		return ids
	}
	problems = append(problems, v.Group(func(key Key) (*musterv1.Resource, bool) {
		if r, found := own[key]; found {
			return r, true
		}
		if lookup == nil {
			return nil, false
		}
		return lookup(key)
	}, keys)...)
	problems = append(problems, v.Conflicts(func(yield func(*musterv1.Resource) bool) {
		for _, r := range f.Resources {
			if !yield(r) {
				return
			}
		}
	})...)
	problems = f.Positions.Locate(f.Positions.dropFaulty(problems))
	problems.Sort()
	return problems
}
