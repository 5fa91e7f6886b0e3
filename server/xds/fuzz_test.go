package xds

import (
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// FuzzParseDelta holds the scanner to what protobuf decodes.
func FuzzParseDelta(f *testing.F) {
	for _, m := range []*discoveryv3.DeltaDiscoveryRequest{
		{},
		{Node: node("a"), TypeUrl: "t", ResourceNamesSubscribe: []string{"a", "*"}, ResourceNamesUnsubscribe: []string{"b"}},
		{TypeUrl: "t", ResponseNonce: "1", ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no"}},
		{TypeUrl: "t", InitialResourceVersions: map[string]string{"a": "1.2.abcdefgh", "": ""}},
	} {
		b, _ := proto.Marshal(m)
		f.Add(b)
	}
	f.Add([]byte{0x12, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseDelta(b)
		m := &discoveryv3.DeltaDiscoveryRequest{}
		if perr := (proto.UnmarshalOptions{}).Unmarshal(b, m); perr != nil {
			return // the scanner is lenient: it looks at less
		}
		if err != nil {
			t.Fatalf("protobuf decodes it, the scanner says %v", err)
		}
		if string(r.typeURL) != m.GetTypeUrl() || string(r.nonce) != m.GetResponseNonce() || r.failed != (m.ErrorDetail != nil) {
			t.Fatalf("scanned %q %q %v of %v", r.typeURL, r.nonce, r.failed, m)
		}
		if !slices.Equal(stringsOf(r.subscribed()), m.GetResourceNamesSubscribe()) ||
			!slices.Equal(stringsOf(r.unsubscribed()), m.GetResourceNamesUnsubscribe()) {
			t.Fatalf("scanned other names of %v", m)
		}
		versions := map[string]string{}
		r.versions(func(name, version []byte) { versions[string(name)] = string(version) })
		if len(versions) != len(m.GetInitialResourceVersions()) {
			t.Fatalf("scanned %v of %v", versions, m)
		}
		for name, version := range m.GetInitialResourceVersions() {
			if versions[name] != version {
				t.Fatalf("scanned %v of %v", versions, m)
			}
		}
	})
}

// FuzzParseSotW holds the scanner to what protobuf decodes.
func FuzzParseSotW(f *testing.F) {
	for _, m := range []*discoveryv3.DiscoveryRequest{
		{},
		{Node: node("a"), TypeUrl: "t", ResourceNames: []string{"a", "b"}, VersionInfo: "1", ResponseNonce: "2"},
		{ErrorDetail: &rpcstatus.Status{Code: 3}},
	} {
		b, _ := proto.Marshal(m)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseSotW(b)
		m := &discoveryv3.DiscoveryRequest{}
		if perr := proto.Unmarshal(b, m); perr != nil {
			return
		}
		if err != nil {
			t.Fatalf("protobuf decodes it, the scanner says %v", err)
		}
		if string(r.typeURL) != m.GetTypeUrl() || string(r.nonce) != m.GetResponseNonce() ||
			string(r.version) != m.GetVersionInfo() || r.failed != (m.ErrorDetail != nil) ||
			!slices.Equal(stringsOf(r.subscribed()), m.GetResourceNames()) {
			t.Fatalf("scanned something else of %v", m)
		}
	})
}

func stringsOf(names func(func([]byte) bool)) []string {
	var out []string
	for name := range names {
		out = append(out, string(name))
	}
	return out
}

// FuzzSession feeds a session whatever comes: requests of any kind in any order,
// snapshots, time. It must not panic, and what it sends must be well formed.
func FuzzSession(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{1, 0, 0, 0, 40, 0, 80, 1, 0, 120, 0, 0, 200, 7, 3, 250, 9, 1})
	f.Add([]byte{2, 255, 254, 253, 252, 251, 250, 3, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		next := func() int {
			if len(in) == 0 {
				return 0
			}
			b := in[0]
			in = in[1:]
			return int(b)
		}
		mode := next()
		delta := mode&1 == 0
		c := client{family: family(mode >> 1 & 3), wrapped: mode&8 != 0}
		c.view.Client = []compile.View{compile.ViewDelta, compile.ViewSotW, compile.ViewGRPC, compile.ViewAll}[mode>>4&3]
		types := []string{
			compile.ClusterType, compile.EndpointType, compile.ListenerType, compile.RouteConfigurationType,
			compile.VirtualHostType, compile.SecretType, "example.com/other", snapshot.ManifestType,
		}
		names := []string{"a", "b", "m", "m/a", "*", "", "xdstp://x/t/*", "xdstp://x/t/a", "\xff"}
		now := time.Unix(0, 0)
		rev := uint64(1)
		snap := snapshot.Empty("g", 1).Apply(snapshot.Version{Epoch: 1, Revision: rev}, []snapshot.Upsert{
			testResource(compile.ClusterType, "a", "1"), testResource(compile.EndpointType, "a", "1"),
			testResource(compile.RouteConfigurationType, "m", "vhds"), testResource(compile.VirtualHostType, "m/a", "a"),
			testResource(compile.SecretType, "xdstp://x/t/a", "1"),
		}, nil)
		cfg := &sessionConfig{
			encoder: snapshot.NewEncoder(snapshot.EncoderConfig{MaxFrame: 300}),
			limits:  Limits{Subscriptions: 20, Types: 6}.withDefaults(), timing: Timing{}.withDefaults(),
		}
		s := newSession(cfg, now, c, delta, "", snap)
		var nonce uint64
		check := func(err error) bool {
			for _, e := range s.effects {
				if e.frame == nil {
					continue
				}
				if e.nonce <= nonce {
					t.Fatalf("nonce %d after %d", e.nonce, nonce)
				}
				nonce = e.nonce
				checkFrame(t, delta, e)
			}
			s.effects = nil
			return err == nil
		}
		for len(in) > 0 {
			ok := true
			switch op := next(); {
			case op < 30:
				rev++
				typeURL, name := types[next()%len(types)], names[next()%len(names)]
				if typeURL == snapshot.ManifestType || name == "\xff" || name == "*" || name == "" {
					continue
				}
				if op < 10 {
					snap = snap.Apply(snapshot.Version{Epoch: 1, Revision: rev}, nil, []compile.Key{{TypeURL: typeURL, Name: name}})
				} else {
					snap = snap.Apply(snapshot.Version{Epoch: 1 + uint64(op/29), Revision: rev}, []snapshot.Upsert{testResource(typeURL, name, string(rune('a'+next()%26)))}, nil)
				}
				ok = check(s.feed(now, snap))
			case op < 40:
				now = now.Add(time.Duration(next()) * 100 * time.Millisecond)
				ok = check(s.tick(now))
			default:
				ok = check(fuzzRequest(t, s, now, delta, types[op%len(types)], names, nonce, next))
			}
			if !ok {
				return
			}
			if at := s.deadline(); !at.IsZero() && at.Before(now.Add(-time.Hour)) {
				t.Fatal("a deadline long past")
			}
		}
	})
}

func fuzzRequest(t *testing.T, s *session, now time.Time, delta bool, typeURL string, names []string, nonce uint64, next func() int) error {
	pick := func() []string {
		var out []string
		for range next() % 4 {
			out = append(out, names[next()%len(names)])
		}
		return out
	}
	how := next()
	var err error
	var st *rpcstatus.Status
	if how&1 != 0 {
		st = &rpcstatus.Status{Code: 3, Message: names[next()%len(names)]}
	}
	answer := ""
	if how&2 != 0 {
		answer = string(appendNonce(nil, nonce-uint64(how>>2&3)))
	}
	var m proto.Message
	if delta {
		d := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: answer, ErrorDetail: st,
			ResourceNamesSubscribe: pick(), ResourceNamesUnsubscribe: pick(), InitialResourceVersions: map[string]string{}}
		for _, name := range pick() {
			d.InitialResourceVersions[name] = []string{"", "1.1.abcdefgh", "x", "1.3.abcdefgh", "99999999999999999999.1.abcdefgh"}[next()%5]
		}
		m = d
	} else {
		m = &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResponseNonce: answer, ErrorDetail: st, ResourceNames: pick(), VersionInfo: "1.1.abcdefgh"}
	}
	// Names that are not UTF-8 cannot be encoded the usual way, but can be sent.
	b, merr := proto.MarshalOptions{}.Marshal(m)
	if merr != nil {
		return nil
	}
	parse := parseSotW
	if delta {
		parse = parseDelta
	}
	r, perr := parse(b)
	if perr != nil {
		t.Fatal(perr)
	}
	err = s.request(now, &r)
	return err
}

func checkFrame(t *testing.T, delta bool, e effect) {
	wire := append(slices.Clone(e.frame.Bytes), nonceField(e.nonce)...)
	seen := map[string]bool{}
	once := func(name string) {
		if seen[name] {
			t.Fatalf("%q twice in a response", name)
		}
		seen[name] = true
	}
	if delta {
		m := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
		for _, r := range m.GetResources() {
			once(r.GetName())
			if r.GetResource().GetTypeUrl() != m.GetTypeUrl() {
				t.Fatalf("a %q in a response of %q", r.GetResource().GetTypeUrl(), m.GetTypeUrl())
			}
		}
		for _, name := range m.GetRemovedResources() {
			once(name)
		}
		return
	}
	m := &discoveryv3.DiscoveryResponse{}
	if err := proto.Unmarshal(wire, m); err != nil {
		t.Fatal(err)
	}
	for i := range m.GetResources() {
		once(e.frame.Upserts[i].Name)
	}
}

// FuzzNonce: what is parsed as a nonce is one.
func FuzzNonce(f *testing.F) {
	f.Add([]byte("1"))
	f.Add([]byte("zzzzzzzzzzzz"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := parseNonce(b); ok && string(appendNonce(nil, n)) != string(b) {
			t.Fatalf("%q is parsed as %d", b, n)
		}
	})
}

// FuzzEndpointsOf holds the scanner to what protobuf decodes of a cluster, which may
// be an operator's own message.
func FuzzEndpointsOf(f *testing.F) {
	for _, content := range []string{"", "static", "service=x"} {
		f.Add(testResource(compile.ClusterType, "a", content).Body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := endpointsOf(snapshot.NewResource(compile.ClusterType, "a", snapshot.Version{}, b))
		m := &clusterv3.Cluster{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		want := ""
		if m.GetType() == clusterv3.Cluster_EDS && m.GetClusterType() == nil {
			if want = m.GetEdsClusterConfig().GetServiceName(); want == "" {
				want = "a"
			}
		}
		// A message may say one thing twice; the last of a oneof counts, and here the
		// order of two kinds is not kept.
		if got != want && m.GetType() == clusterv3.Cluster_EDS && got != "" {
			t.Fatalf("endpoints %q, want %q of %v", got, want, m)
		}
	})
}

// FuzzFailure: whatever stands in error_detail, it is a refusal that can be worked on.
func FuzzFailure(f *testing.F) {
	b, _ := proto.Marshal(&rpcstatus.Status{Code: 3, Message: "no"})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, told := failureOf(b, compile.ClusterType)
		for name := range told {
			if name == "" {
				t.Fatal("a refused resource without a name")
			}
		}
	})
}
