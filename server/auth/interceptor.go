package auth

import (
	"context"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Authenticator checks the callers of a gRPC server. It is immutable; its
// methods may be called concurrently.
type Authenticator struct {
	keys   *Keys
	policy Policy
}

// NewAuthenticator returns an Authenticator over keys and policy.
func NewAuthenticator(keys *Keys, policy Policy) *Authenticator {
	return &Authenticator{keys: keys, policy: policy}
}

// Unary authenticates and authorises unary calls.
func (a *Authenticator) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := a.check(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream authenticates and authorises streams, once, at their beginning.
func (a *Authenticator) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := a.check(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, &identifiedStream{ServerStream: ss, ctx: ctx})
}

type identifiedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *identifiedStream) Context() context.Context { return s.ctx }

func (a *Authenticator) check(ctx context.Context, method string) (context.Context, error) {
	demand := a.policy[method]
	if demand == PermissionPublic {
		return ctx, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	secret, ok := secretOf(md.Get("x-api-key"), md.Get("authorization"))
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no API key: send it as x-api-key")
	}
	id, ok := a.keys.Authenticate(secret)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "the API key is not valid")
	}
	if !id.Role.Allows(demand) {
		return nil, status.Errorf(codes.PermissionDenied, "%s has role %s, which may not call %s", id.Name, id.Role, method)
	}
	return WithIdentity(ctx, id), nil
}

// HTTP wraps a handler so that only callers with the permission reach it.
func (a *Authenticator) HTTP(demand Permission, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if demand == PermissionPublic {
			next.ServeHTTP(w, r)
			return
		}
		secret, _ := secretOf(r.Header.Values("X-Api-Key"), r.Header.Values("Authorization"))
		id, ok := a.keys.Authenticate(secret)
		switch {
		case !ok:
			http.Error(w, `{"error_msg":"no valid API key"}`, http.StatusUnauthorized)
		case !id.Role.Allows(demand):
			http.Error(w, `{"error_msg":"the API key's role does not allow this"}`, http.StatusForbidden)
		default:
			next.ServeHTTP(w, r.WithContext(WithIdentity(r.Context(), id)))
		}
	})
}

// secretOf takes the key from X-API-KEY, API7's header, or from a bearer
// token, which is what Prometheus and most HTTP clients can be told to send.
func secretOf(apiKey, authorization []string) (string, bool) {
	if len(apiKey) > 0 {
		return apiKey[0], true
	}
	if len(authorization) > 0 {
		scheme, token, ok := strings.Cut(authorization[0], " ")
		if ok && strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token), true
		}
	}
	return "", false
}
