package gateway

import (
	"net/http"

	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
)

// headerMutations are the changes of a header_mutation filter to both directions.
type headerMutations struct {
	onRequest, onResponse mutations
	hidden                []string // query parameters that are removed from the request
}

func newHeaderMutations(m *headermutationv3.Mutations) (*headerMutations, error) {
	var out headerMutations
	var err error
	if out.onRequest, err = newMutations(m.GetRequestMutations()); err != nil {
		return nil, err
	}
	for _, kv := range m.GetQueryParameterMutations() {
		out.hidden = append(out.hidden, kv.GetRemove())
	}
	out.onResponse, err = newMutations(m.GetResponseMutations())
	return &out, err
}

// headerMutationFilter applies its own mutations and then the route's.
type headerMutationFilter struct {
	own *headerMutations
}

func newHeaderMutationFilter(m *headermutationv3.HeaderMutation) (*headerMutationFilter, error) {
	own, err := newHeaderMutations(m.GetMutations())
	return &headerMutationFilter{own: own}, err
}

func (f *headerMutationFilter) begin(override any) activeFilter {
	route, _ := override.(*headerMutations)
	return &headerMutationRequest{own: f.own, route: route}
}

type headerMutationRequest struct {
	own, route *headerMutations
}

func (r *headerMutationRequest) request(x *exchange) *reply {
	r.own.applyRequest(x)
	if r.route != nil {
		r.route.applyRequest(x)
	}
	return nil
}

func (m *headerMutations) applyRequest(x *exchange) {
	m.onRequest.apply(x, x.in.Header, nil)
	for _, name := range m.hidden {
		x.removeQuery(name)
	}
}

func (r *headerMutationRequest) response(x *exchange, h http.Header) {
	r.own.onResponse.apply(x, h, h)
	if r.route != nil {
		r.route.onResponse.apply(x, h, h)
	}
}
