package main

import (
	"context"
	"crypto/tls"
	"testing"
	"time"
)

// The figures mean nothing unless every arm really delivers everything.
func TestEveryArmDeliversEveryResourceAndEveryChange(t *testing.T) {
	if err := setTestCertificate(); err != nil {
		t.Fatal(err)
	}
	serverTLS, clientTLS, err := testTLS()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"floor", "linear", "snapshot", "muster"} {
		for _, mode := range []struct {
			name           string
			server, client *tls.Config
		}{{"plaintext", nil, nil}, {"mutual TLS", serverTLS, clientTLS}} {
			t.Run(name+" over "+mode.name, func(t *testing.T) {
				const streams, resources = 5, 300
				s, err := startArm(name, resources, mode.server)
				if err != nil {
					t.Fatal(err)
				}
				defer s.grpc.Stop()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				f := newFleet("node", "envoy", s.addr, streams, resources, mode.client)
				if err := f.connect(ctx); err != nil {
					t.Fatal(err)
				}
				defer f.disconnect()
				if err := f.full(ctx); err != nil {
					t.Fatal(err)
				}
				stamp := time.Now()
				before := s.received.Load()
				for _, i := range []int{7, 299} {
					s.change(stamp, i)
				}
				if err := f.wait(ctx, func(cs *clientStream) bool { return s.received.Load() >= before+streams }); err != nil {
					t.Fatal(err)
				}
				for {
					got, err := f.settledDigest(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if got == digestOf(s.want) {
						break
					}
					if ctx.Err() != nil {
						t.Fatal("the streams do not hold the changed resources")
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
	}
}
