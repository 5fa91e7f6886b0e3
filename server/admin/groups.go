package admin

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// CreateGroup implements AdminService.
func (s *Service) CreateGroup(ctx context.Context, req *musterv1.CreateGroupRequest) (*musterv1.CreateGroupResponse, error) {
	if req.GetGroup().GetId() == "" && req.GetGroup().GetName() == "" {
		return nil, toStatus(requiredField("group.name"))
	}
	g := proto.CloneOf(req.GetGroup())
	state.NormalizeGroup(g)
	cmd := s.command(ctx, req.GetRequestId())
	cmd.Command = &musterv1.Command_CreateGroup{CreateGroup: g}
	res, err := s.apply(ctx, cmd)
	if err != nil {
		return nil, toStatus(underGroup(err))
	}
	return &musterv1.CreateGroupResponse{Group: res.Group}, nil
}

// GetGroup implements AdminService.
func (s *Service) GetGroup(ctx context.Context, req *musterv1.GetGroupRequest) (*musterv1.GetGroupResponse, error) {
	g, err := s.readGroup(ctx, req.GetGroup(), req.GetStale())
	if err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.GetGroupResponse{Group: g.Meta()}, nil
}

// ListGroups implements AdminService.
func (s *Service) ListGroups(ctx context.Context, req *musterv1.ListGroupsRequest) (*musterv1.ListGroupsResponse, error) {
	st, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &musterv1.ListGroupsResponse{}
	for g := range st.Groups() {
		resp.Groups = append(resp.Groups, g.Meta())
	}
	return resp, nil
}

// UpdateGroup implements AdminService.
func (s *Service) UpdateGroup(ctx context.Context, req *musterv1.UpdateGroupRequest) (*musterv1.UpdateGroupResponse, error) {
	if req.GetGroup().GetId() == "" {
		return nil, toStatus(requiredField("group.id"))
	}
	fields, err := changedFields(req.GetUpdateMask())
	if err != nil {
		return nil, toStatus(err)
	}
	// What may not change goes along, so that the state machine refuses a change
	// of it instead of this method ignoring it.
	cmd := s.command(ctx, req.GetRequestId())
	g := proto.CloneOf(req.GetGroup())
	g.Id = s.groupID(g.GetId())
	cmd.Command = &musterv1.Command_ChangeGroup{ChangeGroup: &musterv1.ChangeGroupCommand{Group: g, Fields: fields}}
	res, err := s.apply(ctx, cmd)
	if err != nil {
		return nil, toStatus(underGroup(err))
	}
	return &musterv1.UpdateGroupResponse{Group: res.Group}, nil
}

// changedFields checks an update mask; none means all that may change.
func changedFields(mask []string) ([]string, error) {
	names := state.GroupFields()
	if len(mask) == 0 {
		return names, nil
	}
	var vs []violation
	for i, name := range mask {
		if !slices.Contains(names, name) {
			vs = append(vs, violation{
				field: fmt.Sprintf("update_mask[%d]", i), code: resource.CodeUnknown,
				message: fmt.Sprintf("%q is not a field that may change", name),
				hint:    fmt.Sprintf("one of %v", names),
			})
		}
	}
	if len(vs) > 0 {
		return nil, &invalidError{vs}
	}
	return mask, nil
}

// DeleteGroup implements AdminService.
func (s *Service) DeleteGroup(ctx context.Context, req *musterv1.DeleteGroupRequest) (*musterv1.DeleteGroupResponse, error) {
	if req.GetGroup() == "" {
		return nil, toStatus(requiredField("group"))
	}
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, toStatus(err)
	}
	id := req.GetGroup()
	if g, ok := st.Group(id); ok {
		id = g.ID()
		s.cfg.Refresh(ctx)
		if n := s.cfg.Fleet.Live(id); n > 0 && !req.GetForce() {
			return nil, toStatus(&dataPlanesError{group: id, n: n})
		}
	}
	// An unknown group goes on to the state machine too: it may remember the
	// request and its answer.
	cmd := s.command(ctx, req.GetRequestId())
	cmd.Command = &musterv1.Command_DeleteGroup{DeleteGroup: &musterv1.DeleteGroupCommand{Id: id, Force: req.GetForce()}}
	if _, err := s.apply(ctx, cmd); err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.DeleteGroupResponse{}, nil
}

// underGroup places a problem of a group's field in the request.
func underGroup(err error) error {
	field, ok := err.(*state.InvalidError)
	if !ok || field.Field == "request_id" {
		return err
	}
	return &invalidError{[]violation{{field: "group." + field.Field, code: resource.CodeInvalid, message: field.Reason}}}
}
