package xds

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// TestConversation runs the conversations of testdata/conversation. Each file is one fact; its
// name begins with the item of the protocol's checklist that it holds. Rewrite
// the answers with `go test ./server/xds -run TestConversation -rewrite`, and
// read the difference.
//
// The commands, one conversation with one session per file:
//
//	publish [epoch=N] [rev=N]     the lines below make the next revision:
//	                              TYPE NAME CONTENT, or - TYPE NAME to remove
//	replace                       the lines are all there is at the next revision
//	connect delta|sotw [envoy|grpc|muster|other] [fresh] [only=TYPE] [wrapped] [listen=PORT] [ttl] [errors]
//	                              the stream is a minute old unless it is fresh
//	request TYPE [names=a,b] [sub=a,b] [unsub=a] [init=a@REV,b@EPOCH.REV] [nonce=N] [version=N]
//	                              version=N is that of the response with nonce N
//	ack TYPE [...]                answers the newest response of the type, with the
//	                              names of the last request (state of the world)
//	nack TYPE [says=...] [refused=a,b] [...]
//	feed                          the session takes in what was published
//	wait DURATION                 time passes; the session is told at its deadlines
//
// What the session answers is shown one effect a line, each response as a client
// decodes it: `+` a resource as name@revision, `-` a removed name.
func TestConversation(t *testing.T) {
	datadriven.Walk(t, "testdata/conversation", func(t *testing.T, path string) {
		c := newConversation(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return c.run(t, d)
		})
	})
}

type conversation struct {
	now      time.Time
	snap     *snapshot.Snapshot
	version  snapshot.Version
	sess     *session
	encoder  *snapshot.Encoder
	limits   Limits
	delta    bool
	only     string
	names    map[string][]string // by type, of the last request
	newest   map[string]uint64   // nonce by type
	versions map[string]string   // by type/name@rev
	answered map[string]string   // version_info by nonce
	ended    error
}

func newConversation(t *testing.T) *conversation {
	return &conversation{
		now:     time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		snap:    snapshot.Empty("default", 1),
		version: snapshot.Version{Epoch: 1},
		encoder: snapshot.NewEncoder(snapshot.EncoderConfig{MaxFrame: 600}),
		names:   map[string][]string{}, newest: map[string]uint64{},
		versions: map[string]string{}, answered: map[string]string{},
	}
}

var shortTypes = map[string]string{
	"CDS": compile.ClusterType, "EDS": compile.EndpointType, "SDS": compile.SecretType,
	"ECDS": compile.ExtensionConfigType, "LDS": compile.ListenerType, "RDS": compile.RouteConfigurationType,
	"VHDS": compile.VirtualHostType, "Manifest": snapshot.ManifestType,
}

func longType(s string) string {
	if l, ok := shortTypes[s]; ok {
		return l
	}
	return s
}

func shortType(url string) string {
	for s, l := range shortTypes {
		if l == url {
			return s
		}
	}
	return url
}

func (c *conversation) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "publish", "replace":
		c.publish(t, d)
		return ""
	case "limits":
		d.MaybeScanArgs(t, "subscriptions", &c.limits.Subscriptions)
		d.MaybeScanArgs(t, "types", &c.limits.Types)
		return ""
	case "connect":
		return c.connect(t, d)
	case "feed":
		return c.show(t, c.sess.feed(c.now, c.snap))
	case "unready":
		return c.show(t, c.sess.feed(c.now, nil))
	case "wait":
		return c.wait(t, d)
	case "request", "ack", "nack":
		return c.request(t, d)
	}
	t.Fatalf("unknown command %q", d.Cmd)
	return ""
}

func (c *conversation) publish(t *testing.T, d *datadriven.TestData) {
	c.version.Revision++
	d.MaybeScanArgs(t, "epoch", &c.version.Epoch)
	d.MaybeScanArgs(t, "rev", &c.version.Revision)
	var up []snapshot.Upsert
	var remove []compile.Key
	for line := range strings.SplitSeq(d.Input, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "-":
			remove = append(remove, compile.Key{TypeURL: longType(f[1]), Name: f[2]})
		default:
			up = append(up, testResource(longType(f[0]), f[1], strings.Join(f[2:], " ")))
		}
	}
	if d.Cmd == "replace" {
		c.snap = c.snap.Replace(c.version, up)
	} else {
		c.snap = c.snap.Apply(c.version, up, remove)
	}
	for _, client := range []compile.View{compile.ViewDelta, compile.ViewSotW, compile.ViewGRPC} {
		for _, typeURL := range c.snap.Types() {
			for r := range c.snap.Set(typeURL, snapshot.View{Client: client}).All() {
				c.versions[fmt.Sprintf("%s/%s@%d", typeURL, r.Name, r.Rev)] = r.Version
			}
		}
	}
}

// testResource makes a resource whose message depends on the content. Clusters take
// their endpoints by EDS unless the content says static, and route configurations
// take virtual hosts by VHDS when it says vhds, and go to the clusters that it names
// with to=.
func testResource(typeURL, name, content string) snapshot.Upsert {
	var m proto.Message
	switch typeURL {
	case compile.ClusterType:
		m = testCluster(name, content)
	case compile.ListenerType:
		m = &listenerv3.Listener{Name: name, StatPrefix: content, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 9080}},
		}}}
	case compile.RouteConfigurationType:
		rc := &routev3.RouteConfiguration{Name: name, RequestHeadersToRemove: []string{content}}
		if strings.Contains(content, "vhds") {
			rc.Vhds = &routev3.Vhds{ConfigSource: &corev3.ConfigSource{}}
		}
		for word := range strings.FieldsSeq(content) {
			if cluster, ok := strings.CutPrefix(word, "to="); ok {
				rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{Name: cluster, Domains: []string{cluster}, Routes: []*routev3.Route{{
					Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
				}}})
			}
		}
		m = rc
	case compile.VirtualHostType:
		m = &routev3.VirtualHost{Name: name, Domains: []string{content}}
	default:
		m = wrapperspb.String(content)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // a message built above
	}
	return snapshot.Upsert{Key: compile.Key{TypeURL: typeURL, Name: name}, Body: b}
}

func testCluster(name, content string) *clusterv3.Cluster {
	m := &clusterv3.Cluster{
		Name: name, AltStatName: content,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{},
	}
	for word := range strings.FieldsSeq(content) {
		if word == "static" {
			m.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			m.EdsClusterConfig = nil
		}
		if service, ok := strings.CutPrefix(word, "service="); ok {
			m.EdsClusterConfig.ServiceName = service
		}
	}
	return m
}

func (c *conversation) connect(t *testing.T, d *datadriven.TestData) string {
	cl := client{family: envoyClient}
	began := c.now.Add(-time.Minute)
	errors := false
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "delta", "sotw":
			c.delta = arg.Key == "delta"
		case "envoy":
		case "grpc":
			cl.family = grpcClient
		case "grpc-go":
			cl.family, cl.agent = grpcClient, "gRPC Go/1.85.0"
		case "muster":
			cl.family = musterClient
		case "other":
			cl.family = otherClient
		case "fresh":
			began = c.now
		case "wrapped":
			cl.wrapped = true
		case "ttl":
			cl.ttl = true
		case "errors":
			errors = true
		case "only":
			c.only = longType(arg.Vals[0])
		case "listen":
			port, err := strconv.ParseUint(arg.Vals[0], 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			cl.view.Listen.HTTPPort = uint32(port)
		default:
			t.Fatalf("unknown argument %q", arg.Key)
		}
	}
	switch {
	case cl.family == grpcClient:
		cl.view.Client = compile.ViewGRPC
	case c.delta:
		cl.view.Client = compile.ViewDelta
	default:
		cl.view.Client = compile.ViewSotW
	}
	cfg := &sessionConfig{encoder: c.encoder, errors: errors, limits: c.limits.withDefaults(), timing: Timing{}.withDefaults()}
	if cl.ttl {
		cfg.timing.TTL = 30 * time.Second
		cfg.mortal = snapshot.NewEncoder(snapshot.EncoderConfig{TTL: 30 * time.Second})
	}
	c.sess = newSession(cfg, began, cl, c.delta, c.only, c.snap)
	c.ended = nil
	c.names, c.newest = map[string][]string{}, map[string]uint64{}
	return ""
}

func (c *conversation) wait(t *testing.T, d *datadriven.TestData) string {
	dur, err := time.ParseDuration(d.CmdArgs[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	end := c.now.Add(dur)
	var out strings.Builder
	for c.ended == nil {
		at := c.sess.deadline()
		if at.IsZero() || at.After(end) {
			break
		}
		if at.After(c.now) {
			c.now = at
		}
		out.WriteString(c.show(t, c.sess.tick(c.now)))
	}
	c.now = end
	return out.String()
}

func (c *conversation) request(t *testing.T, d *datadriven.TestData) string {
	if c.ended != nil {
		return "the stream has ended\n"
	}
	var typeURL string
	var names, sub, unsub []string
	init := map[string]string{}
	var st *rpcstatus.Status
	nonce, version := "", ""
	explicitNames := false
	if d.Cmd == "nack" {
		st = &rpcstatus.Status{Code: 3, Message: "refused"}
	}
	for i, arg := range d.CmdArgs {
		vals := strings.FieldsFunc(strings.Join(arg.Vals, ","), func(r rune) bool { return r == ',' })
		switch {
		case i == 0 && len(arg.Vals) == 0:
			typeURL = longType(arg.Key)
			if d.Cmd != "request" {
				nonce = string(appendNonce(nil, c.newest[typeURL]))
			}
		case arg.Key == "names":
			names, explicitNames = vals, true
		case arg.Key == "sub":
			sub = vals
		case arg.Key == "unsub":
			unsub = vals
		case arg.Key == "init":
			for _, v := range vals {
				name, at, _ := strings.Cut(v, "@")
				init[name] = c.versionAt(typeURL, name, at)
			}
		case arg.Key == "nonce":
			nonce = arg.Vals[0]
		case arg.Key == "version":
			version = arg.Vals[0]
			if v, ok := c.answered[version]; ok {
				version = v
			}
		case arg.Key == "says":
			st.Message = strings.ReplaceAll(strings.Join(vals, ", "), "_", " ")
		case arg.Key == "refused":
			for _, name := range vals {
				a, err := anypb.New(&musterv1.Refusal{TypeUrl: typeURL, ResourceName: name, Detail: "bad " + name})
				if err != nil {
					t.Fatal(err)
				}
				st.Details = append(st.Details, a)
			}
		default:
			t.Fatalf("unknown argument %q", arg.Key)
		}
	}
	var m proto.Message
	if c.delta {
		m = &discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: typeURL, ResourceNamesSubscribe: sub, ResourceNamesUnsubscribe: unsub,
			InitialResourceVersions: init, ResponseNonce: nonce, ErrorDetail: st,
		}
	} else {
		if d.Cmd != "request" && !explicitNames {
			names = c.names[typeURL]
		}
		if d.Cmd == "ack" && version == "" {
			version = c.answered[nonce]
		}
		c.names[typeURL] = names
		m = &discoveryv3.DiscoveryRequest{
			TypeUrl: typeURL, ResourceNames: names, ResponseNonce: nonce, VersionInfo: version, ErrorDetail: st,
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	parse := parseSotW
	if c.delta {
		parse = parseDelta
	}
	r, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c.show(t, c.sess.request(c.now, &r))
}

// versionAt returns the version of a resource as of a revision, or makes one up
// of an epoch and revision.
func (c *conversation) versionAt(typeURL, name, at string) string {
	if strings.Contains(at, ".") {
		return at + ".AAAAAAAA"
	}
	if v, ok := c.versions[fmt.Sprintf("%s/%s@%s", typeURL, name, at)]; ok {
		return v
	}
	return at
}

// show returns the effects of the session.
func (c *conversation) show(t *testing.T, err error) string {
	var out strings.Builder
	for _, e := range c.sess.effects {
		switch {
		case e.frame != nil:
			out.WriteString(c.showResponse(t, e) + "\n")
		case e.acked != nil:
			fmt.Fprintf(&out, "acked %s %s", shortType(e.acked.TypeURL), e.acked.Version)
			if len(e.acked.Cleared) > 0 {
				slices.Sort(e.acked.Cleared)
				fmt.Fprintf(&out, " cleared %s", strings.Join(e.acked.Cleared, " "))
			}
			out.WriteString("\n")
		case e.nacked != nil:
			fmt.Fprintf(&out, "NACKED %s %q:", shortType(e.nacked.TypeURL), e.nacked.Detail)
			for _, r := range e.nacked.Refused {
				fmt.Fprintf(&out, " %s@%d", r.Name, r.Rev)
				if r.Serving != "" {
					v, _, _ := snapshot.ParseVersion(r.Serving)
					fmt.Fprintf(&out, " (keeps %d)", v.Revision)
				}
				if r.Detail != "" {
					fmt.Fprintf(&out, " (%s)", r.Detail)
				}
			}
			out.WriteString("\n")
		case e.refusedFrame:
		case e.subscribed != nil:
			fmt.Fprintf(&out, "subscribed %s", shortType(e.subscribed.TypeURL))
			if e.subscribed.Wildcard {
				out.WriteString(" *")
			}
			fmt.Fprintf(&out, " %d\n", e.subscribed.Names)
		default:
			fmt.Fprintf(&out, "synced %s\n", e.synced)
		}
	}
	c.sess.effects = nil
	if err != nil {
		c.ended = err
		fmt.Fprintf(&out, "END %s: %s\n", status.Code(err), status.Convert(err).Message())
	}
	return out.String()
}

// showResponse decodes a response as a client does, and checks what every
// response must be.
func (c *conversation) showResponse(t *testing.T, e effect) string {
	wire := append(slices.Clone(e.frame.Bytes), nonceField(e.nonce)...)
	typeURL, names := "", []string{}
	var nonce, line string
	rev := func(version string) string {
		v, content, ok := snapshot.ParseVersion(version)
		if !ok {
			return version
		}
		if len(content) > 8 {
			return fmt.Sprint(v.Revision, content[8:9])
		}
		return strconv.FormatUint(v.Revision, 10)
	}
	if c.delta {
		m := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
		typeURL, nonce = m.GetTypeUrl(), m.GetNonce()
		slices.SortFunc(m.GetResources(), func(a, b *discoveryv3.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
		for _, r := range m.GetResources() {
			names = append(names, r.GetName())
			if r.GetResource() == nil {
				line += fmt.Sprintf(" ~%s@%s/%s", r.GetName(), rev(r.GetVersion()), r.GetTtl().AsDuration())
				continue
			}
			line += fmt.Sprintf(" +%s@%s", r.GetName(), rev(r.GetVersion()))
			if r.GetTtl() != nil {
				line += "/" + r.GetTtl().AsDuration().String()
			}
			if got := r.GetResource().GetTypeUrl(); got != typeURL {
				t.Errorf("a resource of type %q in a response of %q", got, typeURL)
			}
		}
		slices.Sort(m.GetRemovedResources())
		for _, name := range m.GetRemovedResources() {
			names = append(names, name)
			line += " -" + name
		}
		line += showErrors(m.GetResourceErrors())
	} else {
		m := &discoveryv3.DiscoveryResponse{}
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
		typeURL, nonce = m.GetTypeUrl(), m.GetNonce()
		c.answered[nonce] = m.GetVersionInfo()
		line = " v" + rev(m.GetVersionInfo())
		var items []string
		for i, a := range m.GetResources() {
			r, ttl := e.frame.Upserts[i], ""
			switch a.GetTypeUrl() {
			case typeURL:
			case "type.googleapis.com/envoy.service.discovery.v3.Resource":
				w := &discoveryv3.Resource{}
				if err := a.UnmarshalTo(w); err != nil {
					t.Fatal(err)
				}
				ttl = ""
				if w.GetTtl() != nil {
					ttl = "/" + w.GetTtl().AsDuration().String()
				}
				if a = w.GetResource(); a == nil {
					items = append(items, fmt.Sprintf(" ~%s@%s%s", w.GetName(), rev(w.GetVersion()), ttl))
					continue
				}
			default:
				t.Errorf("a resource of type %q in a response of %q", a.GetTypeUrl(), typeURL)
			}
			if string(a.GetValue()) != string(r.Body) {
				t.Errorf("the response does not hold the body of %s", r.Name)
			}
			names = append(names, r.Name)
			items = append(items, fmt.Sprintf(" +%s@%s%s", r.Name, rev(r.Version), ttl))
		}
		slices.Sort(items)
		line += strings.Join(items, "") + showErrors(m.GetResourceErrors())
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != len(names) {
		t.Errorf("a name twice in a response of %s", typeURL)
	}
	n, ok := parseNonce([]byte(nonce))
	if !ok {
		t.Errorf("nonce %q", nonce)
	}
	c.newest[typeURL] = n
	return fmt.Sprintf("-> %s %s%s", shortType(typeURL), nonce, line)
}

func showErrors(errors []*discoveryv3.ResourceError) string {
	var out []string
	for _, e := range errors {
		out = append(out, fmt.Sprintf(" !%s:%s", e.GetResourceName().GetName(), codes.Code(e.GetErrorDetail().GetCode())))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}
