package resource

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// form is how a text writes a field.
type form uint8

const (
	// plainForm is the form of the message itself.
	plainForm form = iota
	// singleForm is one value where the message has a list: `uri` for `uris`.
	singleForm
	// nodesForm is a list of nodes, or an object of `host:port` to weight.
	nodesForm
)

// alias is another name of a field.
type alias struct {
	field protoreflect.Name
	form  form
	// fileOnly names are read in declarative files only.
	fileOnly bool
}

// refusal says why a field of API7's is not read.
type refusal struct{ reason, hint string }

// dialect is what texts may write beside a message's own field names.
type dialect struct {
	aliases     map[string]alias
	unsupported map[string]refusal
}

var (
	description = alias{field: "desc", fileOnly: true}
	noUpstreams = refusal{"upstreams that stand by themselves are not supported: an upstream belongs to a service or a route", "write the upstream itself into `upstream`"}
	noScript    = refusal{"scripts are not supported: data planes run no Lua", "use plugins"}
	noVersion   = refusal{"published versions of a service are not supported: the group as a whole has revisions", "leave the field out; see `muster history` and `muster rollback`"}
)

// dialects are the texts' own ways, by message.
var dialects = map[protoreflect.FullName]dialect{
	"muster.v1.Service": {
		aliases: map[string]alias{"description": description, "service_id": {field: "id"}},
		unsupported: map[string]refusal{
			"upstream_id": noUpstreams, "script": noScript, "script_id": noScript,
			"version": noVersion, "service_version_id": noVersion,
		},
	},
	"muster.v1.Route": {
		aliases: map[string]alias{
			"description": description, "route_id": {field: "id"},
			"uri": {field: "uris", form: singleForm}, "paths": {field: "uris"},
			"host": {field: "hosts", form: singleForm}, "remote_addr": {field: "remote_addrs", form: singleForm},
		},
		unsupported: map[string]refusal{
			"upstream_id": noUpstreams, "script": noScript, "script_id": noScript,
			"plugin_config_id": {"shared plugin configurations are not supported", "write the plugins into `plugins`, or put them on the service"},
			"filter_func":      {"filter_func is not supported: data planes run no Lua", "use `vars`"},
			"service_protocol": {"service_protocol is not supported", "use an upstream whose scheme is grpc"},
		},
	},
	"muster.v1.StreamRoute": {
		aliases: map[string]alias{"description": description, "stream_route_id": {field: "id"}},
		unsupported: map[string]refusal{
			"upstream_id": noUpstreams,
			"protocol":    {"protocols inside of streams (xRPC) are not supported", "leave the field out to proxy the bytes as they are"},
		},
	},
	"muster.v1.Upstream": {
		aliases: map[string]alias{"description": description},
	},
	"muster.v1.ActiveCheck": {
		aliases: map[string]alias{"http_request_headers": {field: "req_headers"}},
	},
	"muster.v1.Consumer": {
		aliases: map[string]alias{"description": description},
	},
	"muster.v1.Credential": {
		aliases: map[string]alias{"description": description},
	},
	"muster.v1.Ssl": {
		aliases: map[string]alias{"description": description, "sni": {field: "snis", form: singleForm}},
		unsupported: map[string]refusal{
			"validity_start": {"the validity of a certificate is read from the certificate", "leave the field out"},
			"validity_end":   {"the validity of a certificate is read from the certificate", "leave the field out"},
		},
	},
}

// refuseZero are the fields for which a written 0 would be taken for absence.
var refuseZero = map[protoreflect.FullName]bool{
	"muster.v1.Node.port":               true,
	"muster.v1.ActiveCheck.port":        true,
	"muster.v1.StreamRoute.server_port": true,
	"muster.v1.Timeout.connect":         true,
	"muster.v1.Timeout.send":            true,
	"muster.v1.Timeout.read":            true,
}

// ownForm is the form of a field under the message's own name.
func ownForm(fd protoreflect.FieldDescriptor) form {
	if fd.FullName() == "muster.v1.Upstream.nodes" {
		return nodesForm
	}
	return plainForm
}

// nodeMap reads API7's older notation of nodes, an object of `host:port` to
// weight. The order of an object's fields means nothing, so they are sorted.
func (d *decoder) nodeMap(list protoreflect.List, n *node, c *cursor) {
	type weighted struct {
		node *musterv1.Node
		from *field
	}
	var nodes []weighted
	seen := map[string]bool{}
	weights := (&musterv1.Node{}).ProtoReflect().Descriptor().Fields().ByName("weight")
	for i := range n.fields {
		f := &n.fields[i]
		at := &cursor{parent: c, seg: shownSegment(f.key), place: &place{}}
		if seen[f.key] {
			d.report(at, f.at, CodeDuplicate, "the node is given twice", "remove one")
			continue
		}
		seen[f.key] = true
		made := &musterv1.Node{Host: f.key}
		host, port, err := net.SplitHostPort(f.key)
		switch {
		case err == nil:
			number, err := strconv.ParseUint(port, 10, 16)
			if err != nil || number == 0 {
				d.report(at, f.at, CodeInvalid, "a node's port must be 1 to 65535", "")
				continue
			}
			made.Host, made.Port = host, int32(number)
		case strings.HasPrefix(f.key, "[") && strings.HasSuffix(f.key, "]"):
			made.Host = strings.Trim(f.key, "[]")
		}
		value, ok := d.scalar(weights, f.value, at, false)
		if !ok {
			continue
		}
		weight := int32(value.Int())
		made.Weight = &weight
		nodes = append(nodes, weighted{made, f})
	}
	slices.SortFunc(nodes, func(a, b weighted) int {
		if order := strings.Compare(a.node.Host, b.node.Host); order != 0 {
			return order
		}
		return cmp.Compare(a.node.Port, b.node.Port)
	})
	for i, w := range nodes {
		at := c.index(i, w.from.at)
		at.place.grow("weight", w.from.value.at)
		list.Append(protoreflect.ValueOfMessage(w.node.ProtoReflect()))
	}
}
