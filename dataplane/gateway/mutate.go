package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

var errForbiddenHeader = errors.New(":-prefixed or host headers may not be modified")

// mutation is one change of a header.
type mutation struct {
	name      string // canonical
	remove    bool
	value     format
	action    corev3.HeaderValueOption_HeaderAppendAction
	keepEmpty bool
}

// mutations are applied in order.
type mutations []mutation

func (ms mutations) apply(x *exchange, h, resp http.Header) {
	for i := range ms {
		ms[i].apply(x, h, resp)
	}
}

func (m *mutation) apply(x *exchange, h, resp http.Header) {
	if m.remove {
		delete(h, m.name)
		return
	}
	value := m.value.eval(x, resp)
	if value == "" && !m.keepEmpty {
		return
	}
	old, exists := h[m.name]
	switch m.action {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if exists {
			return
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if !exists {
			return
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
	default:
		if exists {
			// Not in place: the slice may be shared with what the server reads.
			h[m.name] = append(old[:len(old):len(old)], value)
			return
		}
	}
	h[m.name] = []string{value}
}

func newAppend(o *corev3.HeaderValueOption) (mutation, error) {
	m := mutation{action: o.GetAppendAction(), keepEmpty: o.GetKeepEmptyValue()}
	key := o.GetHeader().GetKey()
	if err := mutable(key); err != nil {
		return m, err
	}
	text := o.GetHeader().GetValue()
	var err error
	m.name = headerName(key)
	if m.value, err = newFormat(text); err != nil {
		return m, fmt.Errorf("header %q: %w", key, err)
	}
	return m, nil
}

func mutable(name string) error {
	if name == "" || strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
		return fmt.Errorf("header %q: %w", name, errForbiddenHeader)
	}
	return nil
}

// newMutations compiles the list of a header_mutation filter.
func newMutations(list []*mutationv3.HeaderMutation) (mutations, error) {
	var out mutations
	for _, hm := range list {
		switch a := hm.GetAction().(type) {
		case *mutationv3.HeaderMutation_Remove:
			if err := mutable(a.Remove); err != nil {
				return nil, err
			}
			out = append(out, mutation{name: headerName(a.Remove), remove: true})
		case *mutationv3.HeaderMutation_Append:
			m, err := newAppend(a.Append)
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		default:
			return nil, fmt.Errorf("header mutation %T is not supported", a)
		}
	}
	return out, nil
}

// newHeaderOptions compiles the lists that routes, virtual hosts and route
// configurations carry: first what is removed, then what is added.
func newHeaderOptions(remove []string, add []*corev3.HeaderValueOption) (mutations, error) {
	var out mutations
	for _, name := range remove {
		if err := mutable(name); err != nil {
			return nil, err
		}
		out = append(out, mutation{name: headerName(name), remove: true})
	}
	for _, o := range add {
		m, err := newAppend(o)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}
