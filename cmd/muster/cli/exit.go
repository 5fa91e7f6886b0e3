package cli

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	exitOK          = 0
	exitDifferent   = 1
	exitInvalid     = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitDenied      = 5
	exitUnavailable = 6
	exitTimeout     = 7
	exitInterrupted = 130
)

// failure is an error that knows its exit code and what to try next.
type failure struct {
	err  error
	code int
	try  string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// report tells err on stderr and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if errors.Is(err, errDifferent) {
		return exitDifferent
	}
	code, try := classify(err)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
		fmt.Fprintln(a.env.Stderr, "Interrupted.")
		return exitInterrupted
	}
	var inv *invalidError
	if errors.As(err, &inv) {
		a.printProblems(a.env.Stderr, inv.problems)
		fmt.Fprintf(a.env.Stderr, "Error: %s\n", inv.Error())
	} else {
		fmt.Fprintf(a.env.Stderr, "Error: %s\n", message(err))
	}
	if try != "" {
		fmt.Fprintf(a.env.Stderr, "Try: %s\n", try)
	}
	return code
}

// classify returns the exit code of an error, and a command or a deed that may help.
func classify(err error) (code int, try string) {
	var f *failure
	if errors.As(err, &f) {
		return f.code, f.try
	}
	var u *usageError
	if errors.As(err, &u) {
		return exitInvalid, u.try
	}
	var inv *invalidError
	if errors.As(err, &inv) {
		return exitInvalid, ""
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exitTimeout, ""
	}
	s, ok := status.FromError(err)
	if !ok {
		return exitInvalid, ""
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return exitInvalid, ""
	case codes.NotFound:
		return exitNotFound, ""
	case codes.AlreadyExists, codes.Aborted:
		return exitConflict, ""
	case codes.FailedPrecondition:
		return exitConflict, ""
	case codes.Unauthenticated:
		return exitDenied, "set MUSTER_API_KEY, pass --api-key-file, or use a context that holds the key"
	case codes.PermissionDenied:
		return exitDenied, ""
	case codes.DeadlineExceeded:
		return exitTimeout, ""
	case codes.Unimplemented:
		return exitUnavailable, "muster version; the server may be older than this command"
	default:
		return exitUnavailable, ""
	}
}

// message is the cause, without gRPC's wrapping.
func message(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.Error()
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return s.Message()
	}
	return err.Error()
}

// detail returns the first error detail of type T that the server sent.
func detail[T any](err error) (T, bool) {
	var zero T
	s, ok := status.FromError(err)
	if !ok {
		return zero, false
	}
	for _, d := range s.Details() {
		if t, ok := d.(T); ok {
			return t, true
		}
	}
	return zero, false
}

// serverAnswered tells an Unavailable that a server said from one that the transport made.
func serverAnswered(err error) bool {
	_, ok := detail[*errdetails.ErrorInfo](err)
	return ok
}
