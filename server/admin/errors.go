package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/fleet"
)

// Domain is the domain of every ErrorInfo.
const Domain = "muster"

// The reasons of ErrorInfo. They are stable: programs may decide by them.
const (
	ReasonInvalid            = "INVALID"
	ReasonGroupNotFound      = "GROUP_NOT_FOUND"
	ReasonResourceNotFound   = "RESOURCE_NOT_FOUND"
	ReasonExists             = "ALREADY_EXISTS"
	ReasonRevisionConflict   = "REVISION_CONFLICT"
	ReasonRevisionNotKept    = "REVISION_NOT_KEPT"
	ReasonGroupNotEmpty      = "GROUP_NOT_EMPTY"
	ReasonDataPlanesLive     = "DATA_PLANES_CONNECTED"
	ReasonNoLeader           = "NO_LEADER"
	ReasonNotLeader          = "NOT_LEADER"
	ReasonOutcomeUnknown     = "OUTCOME_UNKNOWN"
	ReasonNotReady           = "NOT_READY"
	ReasonDiskFull           = "DISK_FULL"
	ReasonNotMember          = "NOT_MEMBER"
	ReasonRefused            = "REFUSED"
	ReasonBadSnapshot        = "BAD_SNAPSHOT"
	ReasonNotReached         = "NOT_REACHED"
	ReasonGroupDropped       = "GROUP_DROPPED"
	ReasonSecretsNotReadable = "SECRETS_NOT_READABLE"
	ReasonInternal           = "INTERNAL"
)

// violation is one problem of a request.
type violation struct {
	field   string // from the request's root: changes[3].put.route.uris[0]
	code    string
	message string
	hint    string
}

// invalidError is a request with problems: all that were found.
type invalidError struct{ violations []violation }

func (e *invalidError) Error() string {
	if len(e.violations) == 0 {
		return "the request is not valid"
	}
	v := e.violations[0]
	msg := v.message
	if v.field != "" {
		msg = v.field + ": " + msg
	}
	if n := len(e.violations) - 1; n > 0 {
		msg += fmt.Sprintf(" (and %d more)", n)
	}
	return msg
}

func requiredField(name string) error {
	return &invalidError{[]violation{{field: name, code: resource.CodeRequired, message: "is required"}}}
}

// dataPlanesError says that a group to delete still has data planes.
type dataPlanesError struct {
	group string
	n     int
}

func (e *dataPlanesError) Error() string {
	return fmt.Sprintf("group %q: %d data planes are connected", e.group, e.n)
}

// errStopping ends calls that would hold a stop up.
var errStopping = errors.New("the server is stopping")

// errSecrets refuses reveal_secrets.
var errSecrets = errors.New("secrets are revealed only to callers who may write them")

// toStatus maps an error of any room to the gRPC status that callers see. It
// is the only place that does. Nil stays nil and a status stays as it is.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	// Only a status itself: one that an error wraps is what another server said to
	// this one, and would say to the caller what is not so.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	m := classify(err)
	st := status.New(m.code, m.message)
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: m.reason, Domain: Domain, Metadata: m.meta})}
	for _, d := range m.details {
		details = append(details, protoadapt.MessageV1Of(d))
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

type mapped struct {
	code    codes.Code
	reason  string
	message string
	meta    map[string]string
	details []protoadapt.MessageV2
}

func classify(err error) mapped {
	var (
		invalid  *invalidError
		problems resource.Problems
		field    *state.InvalidError
		missing  *state.NotFoundError
		exists   *state.ExistsError
		conflict *state.RevisionConflict
		trimmed  *state.TrimmedError
		live     *dataPlanesError
		reached  *fleet.NotReachedError
	)
	msg := err.Error()
	switch {
	case errors.As(err, &invalid):
		return mapped{codes.InvalidArgument, ReasonInvalid, msg, nil, badRequest(invalid.violations)}
	case errors.As(err, &problems):
		v := violationsOf(problems, nil)
		return mapped{codes.InvalidArgument, ReasonInvalid, (&invalidError{v}).Error(), nil, badRequest(v)}
	case errors.As(err, &field):
		return mapped{codes.InvalidArgument, ReasonInvalid, msg, nil,
			badRequest([]violation{{field: field.Field, code: resource.CodeInvalid, message: field.Reason}})}
	case errors.As(err, &missing):
		meta := map[string]string{"group": missing.Group}
		if missing.Key == (resource.Key{}) {
			return mapped{codes.NotFound, ReasonGroupNotFound, msg, meta, nil}
		}
		meta["key"] = missing.Key.String()
		return mapped{codes.NotFound, ReasonResourceNotFound, msg, meta, nil}
	case errors.As(err, &exists):
		return mapped{codes.AlreadyExists, ReasonExists, msg,
			map[string]string{"group": exists.Group, "field": exists.Field, "value": exists.Value}, nil}
	case errors.As(err, &conflict):
		return mapped{codes.Aborted, ReasonRevisionConflict, msg, map[string]string{
			"group":    conflict.Group,
			"expected": strconv.FormatUint(conflict.Expected, 10),
			"actual":   strconv.FormatUint(conflict.Actual, 10),
			"author":   conflict.Author,
		}, nil}
	case errors.As(err, &trimmed):
		return mapped{codes.OutOfRange, ReasonRevisionNotKept, msg, map[string]string{
			"group":    trimmed.Group,
			"revision": strconv.FormatUint(trimmed.Revision, 10),
			"oldest":   strconv.FormatUint(trimmed.Oldest, 10),
		}, nil}
	case errors.Is(err, state.ErrGroupNotEmpty):
		return mapped{codes.FailedPrecondition, ReasonGroupNotEmpty, msg, nil, nil}
	case errors.As(err, &live):
		return mapped{codes.FailedPrecondition, ReasonDataPlanesLive, msg,
			map[string]string{"group": live.group, "connected": strconv.Itoa(live.n)}, nil}
	case errors.As(err, &reached):
		return mapped{codes.DeadlineExceeded, ReasonNotReached, msg, nil, []protoadapt.MessageV2{reached.Last}}
	case errors.Is(err, fleet.ErrGroupDropped):
		return mapped{codes.NotFound, ReasonGroupDropped, msg, nil, nil}
	case errors.Is(err, errSecrets):
		return mapped{codes.PermissionDenied, ReasonSecretsNotReadable, msg, nil, nil}
	}
	return classifyStore(err)
}

// classifyStore maps what the replicated store and contexts return.
func classifyStore(err error) mapped {
	msg := err.Error()
	retry := []protoadapt.MessageV2{&errdetails.RetryInfo{RetryDelay: durationpb.New(200 * time.Millisecond)}}
	var notLeader *raftstore.NotLeaderError
	switch {
	case errors.Is(err, raftstore.ErrUnknown):
		// First, whatever else the error wraps. Not Unavailable: clients retry that by
		// themselves, and without a request_id a retry could do the work twice.
		return mapped{codes.Unknown, ReasonOutcomeUnknown, msg, nil, nil}
	case errors.As(err, &notLeader):
		return mapped{codes.Unavailable, ReasonNotLeader, msg, map[string]string{"leader": notLeader.Leader}, retry}
	case errors.Is(err, raftstore.ErrNoLeader):
		return mapped{codes.Unavailable, ReasonNoLeader, msg, nil, retry}
	case errors.Is(err, raftstore.ErrNotReady), errors.Is(err, raftstore.ErrStopped), errors.Is(err, errStopping):
		return mapped{codes.Unavailable, ReasonNotReady, msg, nil, retry}
	case errors.Is(err, raftstore.ErrDiskFull):
		return mapped{codes.ResourceExhausted, ReasonDiskFull, msg, nil, nil}
	case errors.Is(err, raftstore.ErrNotMember):
		return mapped{codes.NotFound, ReasonNotMember, msg, nil, nil}
	case errors.Is(err, raftstore.ErrRefused):
		return mapped{codes.FailedPrecondition, ReasonRefused, msg, nil, nil}
	case errors.Is(err, state.ErrSnapshot):
		return mapped{codes.InvalidArgument, ReasonBadSnapshot, msg, nil, nil}
	case errors.Is(err, raftstore.ErrTooLarge):
		v := []violation{{code: resource.CodeTooLarge, message: msg, hint: "split the transaction"}}
		return mapped{codes.InvalidArgument, ReasonInvalid, msg, nil, badRequest(v)}
	case errors.Is(err, context.DeadlineExceeded):
		return mapped{codes.DeadlineExceeded, ReasonOutcomeUnknown, msg, nil, nil}
	case errors.Is(err, context.Canceled):
		return mapped{codes.Canceled, ReasonOutcomeUnknown, msg, nil, nil}
	default:
		return mapped{codes.Internal, ReasonInternal, msg, nil, nil}
	}
}

func badRequest(vs []violation) []protoadapt.MessageV2 {
	b := &errdetails.BadRequest{}
	for _, v := range vs {
		f := &errdetails.BadRequest_FieldViolation{Field: v.field, Description: v.message, Reason: v.code}
		if v.hint != "" {
			f.LocalizedMessage = &errdetails.LocalizedMessage{Locale: "en-US", Message: v.hint}
		}
		b.FieldViolations = append(b.FieldViolations, f)
	}
	return []protoadapt.MessageV2{b}
}
