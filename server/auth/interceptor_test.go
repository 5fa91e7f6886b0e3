package auth

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func authenticator() *Authenticator {
	return NewAuthenticator(NewKeys(
		NewKey("ann", RoleAdmin, "admin-key"), NewKey("ed", RoleEditor, "editor-key"), NewKey("vi", RoleViewer, "viewer-key"),
	), DefaultPolicy())
}

func call(t *testing.T, method string, md ...string) (Identity, error) {
	t.Helper()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(md...))
	var id Identity
	_, err := authenticator().Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
		id, _ = FromContext(ctx)
		return nil, nil
	})
	return id, err
}

func TestAMethodAsksForItsPermission(t *testing.T) {
	const (
		get    = "/muster.v1.AdminService/GetGroup"
		commit = "/muster.v1.AdminService/Commit"
		sock   = "/grpc.channelz.v1.Channelz/GetSocket"
		health = "/grpc.health.v1.Health/Check"
		other  = "/muster.v1.AdminService/NotInThePolicy"
	)
	for _, c := range []struct {
		method string
		md     []string
		want   codes.Code
		name   string
	}{
		{get, []string{"x-api-key", "viewer-key"}, codes.OK, "vi"},
		{get, []string{"authorization", "Bearer viewer-key"}, codes.OK, "vi"},
		{get, []string{"authorization", "bearer viewer-key"}, codes.OK, "vi"},
		{get, []string{"authorization", "Basic viewer-key"}, codes.Unauthenticated, ""},
		{get, nil, codes.Unauthenticated, ""},
		{get, []string{"x-api-key", "wrong"}, codes.Unauthenticated, ""},
		{get, []string{"x-api-key", ""}, codes.Unauthenticated, ""},
		{commit, []string{"x-api-key", "viewer-key"}, codes.PermissionDenied, ""},
		{commit, []string{"x-api-key", "editor-key"}, codes.OK, "ed"},
		{sock, []string{"x-api-key", "editor-key"}, codes.PermissionDenied, ""},
		{sock, []string{"x-api-key", "admin-key"}, codes.OK, "ann"},
		{health, nil, codes.OK, ""},
		{other, []string{"x-api-key", "admin-key"}, codes.PermissionDenied, ""},
	} {
		id, err := call(t, c.method, c.md...)
		if status.Code(err) != c.want || id.Name != c.name {
			t.Errorf("%s with %v: %v as %q, want %s as %q", c.method, c.md, err, id.Name, c.want, c.name)
		}
	}
}

// Every method that is served must be in the policy on purpose: one that is
// forgotten would be refused to everybody, one that is too open would not show.
func TestThePolicyKnowsEveryMethodOfTheAPI(t *testing.T) {
	policy := DefaultPolicy()
	services := []grpc.ServiceDesc{musterv1.AdminService_ServiceDesc, musterv1.FleetService_ServiceDesc, musterv1.ClusterService_ServiceDesc}
	for _, s := range services {
		for _, m := range s.Methods {
			if policy["/"+s.ServiceName+"/"+m.MethodName] < PermissionRead {
				t.Errorf("%s/%s has no permission", s.ServiceName, m.MethodName)
			}
		}
		for _, m := range s.Streams {
			if policy["/"+s.ServiceName+"/"+m.StreamName] < PermissionRead {
				t.Errorf("%s/%s has no permission", s.ServiceName, m.StreamName)
			}
		}
	}
}

func TestHTTPHandlersAskForTheSameKeys(t *testing.T) {
	var who Identity
	h := authenticator().HTTP(PermissionWrite, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		who, _ = FromContext(r.Context())
	}))
	for _, c := range []struct {
		header, value string
		want          int
	}{
		{"X-Api-Key", "editor-key", http.StatusOK},
		{"Authorization", "Bearer editor-key", http.StatusOK},
		{"X-Api-Key", "viewer-key", http.StatusForbidden},
		{"X-Api-Key", "wrong", http.StatusUnauthorized},
		{"X-Other", "editor-key", http.StatusUnauthorized},
	} {
		who = Identity{}
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		req.Header.Set(c.header, c.value)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if rec.Code != c.want || (rec.Code == http.StatusOK) != (who.Name == "ed") {
			t.Errorf("%s: %s gives %d as %q, want %d", c.header, c.value, rec.Code, who.Name, c.want)
		}
	}
}
