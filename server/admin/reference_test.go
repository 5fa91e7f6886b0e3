package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// certificateOf is a certificate that is valid now.
func certificateOf(t *testing.T, id, kind string, snis ...string) *musterv1.Resource {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{
		Id: id, Type: kind, Snis: snis,
		Cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		Key:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	}}}
}

func serviceWithClientCert(id, ssl string) *musterv1.Resource {
	s := serviceOf(id, "10.0.0.1")
	s.GetService().Upstream.Scheme = "https"
	s.GetService().Upstream.Tls = &musterv1.UpstreamTls{ClientCertId: ssl}
	return s
}

// Data planes would wait for a certificate that never comes.
func TestACertificateThatIsReferredToStays(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	cert := certificateOf(t, "client", "client")
	h.commit(put(cert), put(serviceWithClientCert("pay", "client")), put(certificateOf(t, "other", "client")))
	server := certificateOf(t, "client", "server", "api.example.com")
	for name, change := range map[string]*musterv1.Change{
		"deleted":             del(musterv1.Kind_KIND_SSL, "client"),
		"made a server's own": put(server),
	} {
		_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{change}})
		wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
		v := violationsIn(err)["service/pay.upstream.tls.client_cert_id"]
		if v.GetReason() != resource.CodeReferenced && v.GetReason() != resource.CodeReference {
			t.Errorf("%s: violations = %v", name, violationsIn(err))
		}
	}
	// A renewed certificate is fine, and so is to let go of it in the same breath.
	h.commit(put(certificateOf(t, "client", "client")), del(musterv1.Kind_KIND_SSL, "other"))
	h.commit(del(musterv1.Kind_KIND_SSL, "client"), put(serviceOf("pay", "10.0.0.1")))
}

func TestAServiceKeepsTheTypeThatItsRoutesNeed(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")), put(routeOf("r", "pay", "/pay")))
	stream := serviceOf("pay", "10.0.0.1")
	stream.GetService().Type, stream.GetService().Upstream.Scheme = "stream", "tcp"
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(stream)}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if v := violationsIn(err)["route/r.service_id"]; v.GetReason() != resource.CodeReference {
		t.Errorf("violations = %v", violationsIn(err))
	}
	h.commit(put(stream), del(musterv1.Kind_KIND_ROUTE, "r"))
}
