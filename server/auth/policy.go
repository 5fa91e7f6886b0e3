package auth

// Permission is what a method demands of its caller.
type Permission int

const (
	// PermissionDenied is held by nobody. It is the zero value: a method that
	// is not in the policy is refused.
	PermissionDenied Permission = iota
	// PermissionPublic needs no identity at all.
	PermissionPublic
	PermissionRead
	PermissionWrite
	PermissionOperate
)

// Allows reports whether an identity of this role holds a permission.
func (r Role) Allows(p Permission) bool {
	switch p {
	case PermissionPublic:
		return true
	case PermissionRead:
		return r >= RoleViewer
	case PermissionWrite:
		return r >= RoleEditor
	case PermissionOperate:
		return r >= RoleAdmin
	default:
		return false
	}
}

// Policy tells what each full gRPC method name demands.
type Policy map[string]Permission

// DefaultPolicy covers every service of the admin port.
func DefaultPolicy() Policy {
	p := Policy{}
	p.add("/muster.v1.AdminService/", PermissionRead,
		"GetGroup", "ListGroups", "GetResource", "ListResources", "ListRevisions", "DiffRevisions", "GetServerInfo")
	p.add("/muster.v1.AdminService/", PermissionWrite,
		"CreateGroup", "UpdateGroup", "DeleteGroup", "Commit", "Rollback")
	p.add("/muster.v1.FleetService/", PermissionRead, "ListDataPlanes", "Wait")
	p.add("/muster.v1.ClusterService/", PermissionRead, "ListPeers", "GetClusterStatus")
	// A snapshot holds every secret of every group.
	p.add("/muster.v1.ClusterService/", PermissionOperate,
		"JoinCluster", "RemovePeer", "TransferLeader", "SaveSnapshot", "InspectSnapshot", "RestoreSnapshot")
	// Health says nothing about the configuration, and load balancers carry no key.
	p.add("/grpc.health.v1.Health/", PermissionPublic, "Check", "Watch", "List")
	p.add("/grpc.reflection.v1.ServerReflection/", PermissionRead, "ServerReflectionInfo")
	p.add("/grpc.reflection.v1alpha.ServerReflection/", PermissionRead, "ServerReflectionInfo")
	// Channelz shows addresses and traffic of every connection.
	p.add("/grpc.channelz.v1.Channelz/", PermissionOperate,
		"GetTopChannels", "GetServers", "GetServer", "GetServerSockets", "GetChannel", "GetSubchannel", "GetSocket")
	// The client status service shows what data planes of every group were sent.
	p.add("/envoy.service.status.v3.ClientStatusDiscoveryService/", PermissionOperate,
		"FetchClientStatus", "StreamClientStatus")
	return p
}

func (p Policy) add(service string, perm Permission, methods ...string) {
	for _, m := range methods {
		p[service+m] = perm
	}
}
