package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// The model: a group that changes at random, and clients that answer at random
// what the session sends, in the order of each type, and come back at random. The
// clock stands still but for the time that a new stream is given to begin, so that
// nothing can be owed to a time limit.
//
// Held of every client at every step:
//   - no response has a name twice, or resources of another type, and in the
//     state-of-the-world protocol none is sent before the last is answered;
//   - no accepted resource is ever replaced by an earlier revision of it;
//   - a virtual host that the client accepted refers to a cluster that it has and
//     that has its endpoints;
//   - a client with a manifest holds exactly a revision when its manifest comes.
//
// And when everything is answered: the client holds what the group has, apart from
// the bad resources, whose last good version it holds, or none.

const badWord = "bad"

// world is the group.
type world struct {
	snap    *snapshot.Snapshot
	rev     uint64
	content map[compile.Key]string // what is in snap
	history map[uint64]*snapshot.Snapshot
	last    string // the last transaction, for the log
}

func newWorld() *world {
	w := &world{snap: snapshot.Empty("default", 1), content: map[compile.Key]string{}, history: map[uint64]*snapshot.Snapshot{}}
	w.commit(map[compile.Key]string{
		{TypeURL: compile.RouteConfigurationType, Name: "m"}: "vhds",
		{TypeURL: compile.ListenerType, Name: "http"}:        "1",
	}, nil)
	return w
}

func (w *world) commit(up map[compile.Key]string, remove []compile.Key) {
	w.rev++
	var list []snapshot.Upsert
	for _, k := range remove {
		delete(w.content, k)
	}
	for _, k := range slices.SortedFunc(maps.Keys(up), compareKeys) {
		w.content[k] = up[k]
		list = append(list, w.resource(k))
	}
	w.snap = w.snap.Apply(snapshot.Version{Epoch: 1, Revision: w.rev}, list, remove)
	w.last = fmt.Sprint(up, " removed ", remove)
	w.history[w.rev] = w.snap
}

func (w *world) resource(k compile.Key) snapshot.Upsert {
	return testResource(k.TypeURL, k.Name, w.content[k])
}

// restart builds the snapshot anew, as a server does that starts at this revision:
// the same content, counted differently.
func (w *world) restart() {
	var list []snapshot.Upsert
	for _, k := range slices.SortedFunc(maps.Keys(w.content), compareKeys) {
		list = append(list, w.resource(k))
	}
	w.snap = snapshot.Empty("default", 1).Apply(snapshot.Version{Epoch: 1, Revision: w.rev}, list, nil)
	w.history[w.rev] = w.snap
}

func compareKeys(a, b compile.Key) int {
	return strings.Compare(a.TypeURL+"/"+a.Name, b.TypeURL+"/"+b.Name)
}

// change makes a random transaction in which every virtual host refers to a
// cluster that is there, and every cluster has its endpoints.
func (w *world) change(t *rapid.T) {
	up := map[compile.Key]string{}
	var remove []compile.Key
	clusters := map[string]bool{}
	for k := range w.content {
		if k.TypeURL == compile.ClusterType {
			clusters[k.Name] = true
		}
	}
	for range rapid.IntRange(1, 4).Draw(t, "changes") {
		n := rapid.IntRange(0, 99).Draw(t, "value")
		name := "cluster-" + string(rune('a'+rapid.IntRange(0, 5).Draw(t, "name")))
		quality := ""
		if rapid.IntRange(0, 9).Draw(t, "quality") == 0 {
			quality = badWord
		}
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0: // a cluster comes or changes
			clusters[name] = true
			up[compile.Key{TypeURL: compile.ClusterType, Name: name}] = fmt.Sprint(n)
			eds := compile.Key{TypeURL: compile.EndpointType, Name: name}
			if _, ok := w.content[eds]; !ok || slices.Contains(remove, eds) {
				up[eds] = fmt.Sprint(n)
			}
		case 1: // its endpoints change
			if clusters[name] {
				up[compile.Key{TypeURL: compile.EndpointType, Name: name}] = fmt.Sprint(n)
			}
		case 2, 3: // a virtual host comes or moves
			cs := slices.Sorted(maps.Keys(clusters))
			if len(cs) > 0 {
				c := cs[n%len(cs)]
				up[compile.Key{TypeURL: compile.VirtualHostType, Name: "m/" + name[len("cluster-"):]}] = c + " " + quality + fmt.Sprint(n)
			}
		case 4: // a virtual host goes
			k := compile.Key{TypeURL: compile.VirtualHostType, Name: "m/" + name[len("cluster-"):]}
			delete(up, k)
			remove = append(remove, k)
		case 5: // a cluster goes, and every virtual host of it
			if quality != "" {
				up[compile.Key{TypeURL: compile.ListenerType, Name: "extra"}] = quality + fmt.Sprint(n)
				continue
			}
			delete(clusters, name)
			for k, content := range w.content {
				if k.TypeURL == compile.VirtualHostType && strings.HasPrefix(content, name+" ") {
					remove = append(remove, k)
				}
			}
			for k, content := range up {
				if k.TypeURL == compile.VirtualHostType && strings.HasPrefix(content, name+" ") {
					delete(up, k)
					remove = append(remove, k)
				}
			}
			for _, typeURL := range []string{compile.ClusterType, compile.EndpointType} {
				k := compile.Key{TypeURL: typeURL, Name: name}
				delete(up, k)
				remove = append(remove, k)
			}
		}
	}
	// What goes and comes in one transaction comes.
	slices.SortFunc(remove, compareKeys)
	remove = slices.DeleteFunc(slices.Compact(remove), func(k compile.Key) bool { _, back := up[k]; return back })
	w.commit(up, remove)
}

// modelClient is a client. It works on responses in the order in which they come,
// and answers them when it is told to.
type modelClient struct {
	world  *world
	family family
	delta  bool
	sess   *session
	now    time.Time
	// returning: a state-of-the-world client that has come back and is not up to
	// date yet. Nobody knows which clusters it holds: what was removed while it was
	// away cannot be kept for it until its routes have moved.
	returning bool
	encoder   *snapshot.Encoder

	held    map[string]map[string]*discoveryv3.Resource // by type and name
	owed    map[string][]proto.Message                  // answers by type, in order
	waits   map[string]map[string]bool                  // clusters whose endpoints the oldest answer about clusters waits for
	asked   map[string]map[string]bool                  // names subscribed to, by type
	started map[string]bool
	nonce   map[string]string // state of the world: of the newest response
	version map[string]string // state of the world: last accepted
}

func newModelClient(w *world, delta bool, f family) *modelClient {
	c := &modelClient{
		world: w, delta: delta, family: f, encoder: snapshot.NewEncoder(snapshot.EncoderConfig{MaxFrame: 2000}),
		held: map[string]map[string]*discoveryv3.Resource{}, version: map[string]string{},
	}
	for _, typeURL := range c.types() {
		c.held[typeURL] = map[string]*discoveryv3.Resource{}
	}
	c.connect(nil)
	return c
}

func (c *modelClient) types() []string {
	types := []string{compile.ClusterType, compile.EndpointType, compile.ListenerType, compile.RouteConfigurationType}
	if c.delta {
		types = append(types, compile.VirtualHostType)
	}
	if c.family == musterClient {
		types = append(types, snapshot.ManifestType)
	}
	return types
}

// named reports whether the client subscribes to a type by name.
func (c *modelClient) named(typeURL string) bool {
	return c.family != musterClient && (typeURL == compile.EndpointType || typeURL == compile.RouteConfigurationType)
}

func (c *modelClient) view() snapshot.View {
	if c.delta {
		return snapshot.View{Client: compile.ViewDelta}
	}
	return snapshot.View{Client: compile.ViewSotW}
}

// connect begins a new stream; what the client holds it keeps, and asks for at
// once: an Envoy what it has something of first, in any order.
func (c *modelClient) connect(t *rapid.T) {
	before := c.started
	c.returning = !c.delta && len(before) > 0
	cfg := &sessionConfig{encoder: c.encoder, limits: Limits{}.withDefaults(), timing: Timing{}.withDefaults()}
	c.sess = newSession(cfg, c.now, client{family: c.family, view: c.view()}, c.delta, "", c.world.snap)
	c.owed, c.waits = map[string][]proto.Message{}, map[string]map[string]bool{}
	c.asked, c.started, c.nonce = map[string]map[string]bool{}, map[string]bool{}, map[string]string{}
	types := slices.DeleteFunc(c.types(), func(typeURL string) bool { return !before[typeURL] })
	if len(types) == 0 {
		return
	}
	if c.family == envoyClient {
		var some, none []string
		for _, typeURL := range types {
			if len(c.held[typeURL]) > 0 {
				some = append(some, typeURL)
			} else {
				none = append(none, typeURL)
			}
		}
		if len(some) > 0 {
			some = rapid.Permutation(some).Draw(t, "order")
		}
		types = append(some, none...)
	}
	for _, typeURL := range types {
		c.ask(t, typeURL)
	}
}

// wants returns the names of a type that the client needs now.
func (c *modelClient) wants(typeURL string) map[string]bool {
	want := map[string]bool{}
	switch typeURL {
	case compile.RouteConfigurationType:
		want["m"] = true
	case compile.EndpointType:
		for name := range c.held[compile.ClusterType] {
			want[name] = true
		}
	}
	return want
}

// ask sends the first request of a type, or a request for what the client needs by
// now and did not ask for yet; it reports whether there was something to ask.
func (c *modelClient) ask(t *rapid.T, typeURL string) bool {
	first := !c.started[typeURL]
	m := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}
	if c.named(typeURL) {
		want := c.wants(typeURL)
		for name := range want {
			if !c.asked[typeURL][name] {
				m.ResourceNamesSubscribe = append(m.ResourceNamesSubscribe, name)
			}
		}
		for name := range c.asked[typeURL] {
			if !want[name] {
				m.ResourceNamesUnsubscribe = append(m.ResourceNamesUnsubscribe, name)
			}
		}
		if len(m.ResourceNamesSubscribe)+len(m.ResourceNamesUnsubscribe) == 0 {
			return false
		}
		c.asked[typeURL] = want
		for name := range c.held[typeURL] {
			if !want[name] {
				delete(c.held[typeURL], name)
			}
		}
	} else if !first {
		return false
	} else if c.family == musterClient {
		m.ResourceNamesSubscribe = []string{"*"}
	}
	c.started[typeURL] = true
	if !c.delta {
		// An answer that is owed will bring the names.
		if len(c.owed[typeURL]) == 0 {
			c.send(t, c.sotwRequest(typeURL))
		}
		return true
	}
	if first && typeURL != snapshot.ManifestType {
		m.InitialResourceVersions = map[string]string{}
		for name, res := range c.held[typeURL] {
			m.InitialResourceVersions[name] = res.GetVersion()
		}
	}
	c.send(t, m)
	return true
}

func (c *modelClient) sotwRequest(typeURL string) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{
		TypeUrl: typeURL, ResourceNames: slices.Sorted(maps.Keys(c.asked[typeURL])),
		VersionInfo: c.version[typeURL], ResponseNonce: c.nonce[typeURL],
	}
}

func (c *modelClient) send(t *rapid.T, m proto.Message) {
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
	t.Logf("%s -> %s nonce %s, %d versions, refused: %v, %q %q", c.name(), messageName(string(r.typeURL)), r.nonce, r.initial, r.failed,
		slices.Collect(r.subscribed()), slices.Collect(r.unsubscribed()))
	c.receive(t, c.sess.request(c.now, &r))
}

// receive works on what the session sends.
func (c *modelClient) receive(t *rapid.T, err error) {
	if err != nil {
		t.Fatalf("the session ended: %v", err)
	}
	effects := c.sess.effects
	c.sess.effects = nil
	for _, e := range effects {
		if e.frame != nil {
			c.response(t, e)
		}
	}
}

func (c *modelClient) response(t *rapid.T, e effect) {
	wire := append(slices.Clone(e.frame.Bytes), nonceField(e.nonce)...)
	m := &discoveryv3.DeltaDiscoveryResponse{}
	if c.delta {
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
	} else {
		sotw := &discoveryv3.DiscoveryResponse{}
		if err := proto.Unmarshal(wire, sotw); err != nil {
			t.Fatal(err)
		}
		m.TypeUrl, m.Nonce, m.SystemVersionInfo = sotw.GetTypeUrl(), sotw.GetNonce(), sotw.GetVersionInfo()
		for i, a := range sotw.GetResources() {
			up := e.frame.Upserts[i]
			m.Resources = append(m.Resources, &discoveryv3.Resource{Name: up.Name, Version: up.Version, Resource: a})
		}
	}
	typeURL := m.GetTypeUrl()
	var what []string
	for _, res := range m.GetResources() {
		what = append(what, "+"+res.GetName()+"@"+res.GetVersion())
	}
	t.Logf("%s <- %s %s %v -%v", c.name(), messageName(typeURL), m.GetNonce(), what, m.GetRemovedResources())
	seen := map[string]bool{}
	for _, res := range m.GetResources() {
		if seen[res.GetName()] || res.GetResource().GetTypeUrl() != typeURL {
			t.Fatalf("%s twice, or of another type, in a response of %s", res.GetName(), typeURL)
		}
		seen[res.GetName()] = true
	}
	for _, name := range m.GetRemovedResources() {
		if seen[name] {
			t.Fatalf("%s is sent twice, or sent and removed", name)
		}
		seen[name] = true
	}
	if len(c.owed[typeURL]) > 0 && !c.delta {
		t.Fatalf("two responses of %s on their way", typeURL)
	}
	c.nonce[typeURL] = m.GetNonce()
	var refusal *rpcstatus.Status
	if i := slices.IndexFunc(m.GetResources(), isBad); i >= 0 && c.family != musterClient {
		refusal = &rpcstatus.Status{Code: 3, Message: "no"}
		if rapid.Bool().Draw(t, "the words name it") {
			refusal.Message = "bad: " + m.GetResources()[i].GetName()
		}
	} else {
		c.apply(t, m)
		c.version[typeURL] = m.GetSystemVersionInfo()
	}
	if c.delta {
		c.owed[typeURL] = append(c.owed[typeURL], &discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: typeURL, ResponseNonce: m.GetNonce(), ErrorDetail: refusal,
		})
		return
	}
	answer := c.sotwRequest(typeURL) // its names are set when it is sent
	answer.ErrorDetail = refusal
	c.owed[typeURL] = append(c.owed[typeURL], answer)
}

func isBad(r *discoveryv3.Resource) bool {
	return strings.Contains(string(r.GetResource().GetValue()), badWord)
}

// apply takes a response in, and checks what must hold then.
func (c *modelClient) apply(t *rapid.T, m *discoveryv3.DeltaDiscoveryResponse) {
	typeURL := m.GetTypeUrl()
	held := c.held[typeURL]
	next := held
	if !c.delta && (typeURL == compile.ClusterType || typeURL == compile.ListenerType) {
		next = map[string]*discoveryv3.Resource{}
	}
	waits := map[string]bool{}
	for _, res := range m.GetResources() {
		name := res.GetName()
		if before := held[name]; before != nil && revOf(res) > 0 && !sameContent(res, before) && revOf(res) < revOf(before) {
			t.Fatalf("%s of %s goes back from %s to %s", name, typeURL, before.GetVersion(), res.GetVersion())
		} else if typeURL == compile.ClusterType && (before == nil || !sameContent(res, before) || c.delta) {
			waits[name] = true
		}
		if c.named(typeURL) && !c.asked[typeURL][name] && !(typeURL == compile.EndpointType && c.held[compile.ClusterType][name] != nil) {
			continue // nobody asked for it and nobody uses it
		}
		next[name] = res
	}
	for _, name := range m.GetRemovedResources() {
		delete(next, name)
	}
	c.held[typeURL] = next
	switch typeURL {
	case compile.ClusterType:
		if c.family != musterClient { // endpoints go with their cluster
			maps.DeleteFunc(c.held[compile.EndpointType], func(name string, _ *discoveryv3.Resource) bool { return next[name] == nil })
		}
		if c.family == envoyClient {
			c.waits[m.GetNonce()] = waits
		}
	case compile.EndpointType:
		for _, w := range c.waits {
			for name := range w {
				if next[name] != nil && slices.ContainsFunc(m.GetResources(), func(r *discoveryv3.Resource) bool { return r.GetName() == name }) ||
					slices.Contains(m.GetRemovedResources(), name) {
					delete(w, name)
				}
			}
		}
	case snapshot.ManifestType:
		c.checkWhole(t, m)
	}
	c.checkOrder(t)
}

// checkWhole fails when the client does not hold exactly the manifest's revision.
func (c *modelClient) checkWhole(t *rapid.T, m *discoveryv3.DeltaDiscoveryResponse) {
	var manifest musterv1.Manifest
	if err := m.GetResources()[0].GetResource().UnmarshalTo(&manifest); err != nil {
		t.Fatal(err)
	}
	snap := c.world.history[manifest.GetRevision()]
	for _, typeURL := range c.types() {
		if typeURL != snapshot.ManifestType && c.started[typeURL] {
			c.checkHolds(t, typeURL, snap)
		}
	}
}

// checkOrder fails when an accepted virtual host refers to a cluster that the
// client does not have, or has without endpoints.
func (c *modelClient) checkOrder(t *rapid.T) {
	if c.family == musterClient || c.returning {
		return
	}
	for name, res := range c.held[compile.VirtualHostType] {
		c.checkHost(t, name, res.GetResource().GetValue())
	}
	for _, res := range c.held[compile.RouteConfigurationType] {
		rc := &routev3.RouteConfiguration{}
		if err := proto.Unmarshal(res.GetResource().GetValue(), rc); err != nil {
			t.Fatal(err)
		}
		for _, h := range rc.GetVirtualHosts() {
			c.checkCluster(t, h)
		}
	}
}

func (c *modelClient) checkHost(t *rapid.T, name string, body []byte) {
	h := &routev3.VirtualHost{}
	if err := proto.Unmarshal(body, h); err != nil {
		t.Fatal(err)
	}
	c.checkCluster(t, h)
}

func (c *modelClient) checkCluster(t *rapid.T, h *routev3.VirtualHost) {
	cluster, _, _ := strings.Cut(h.GetDomains()[0], " ")
	if c.held[compile.ClusterType][cluster] == nil {
		t.Fatalf("%s: virtual host %s refers to cluster %s, which the client does not have", c.name(), h.GetName(), cluster)
	}
	warm := c.held[compile.EndpointType][cluster] != nil
	if c.family == envoyClient && !warm {
		t.Fatalf("%s: virtual host %s refers to cluster %s, which has no endpoints", c.name(), h.GetName(), cluster)
	}
}

// answers sends the oldest answer that the client owes of a type; it reports
// whether there was one that the client would send. An Envoy acknowledges clusters
// when the endpoints of the new and changed ones are there.
func (c *modelClient) answers(t *rapid.T, typeURL string) bool {
	if len(c.owed[typeURL]) == 0 {
		return false
	}
	m := c.owed[typeURL][0]
	switch m := m.(type) {
	case *discoveryv3.DeltaDiscoveryRequest:
		if len(c.waits[m.GetResponseNonce()]) > 0 {
			return false
		}
	case *discoveryv3.DiscoveryRequest:
		if len(c.waits[m.GetResponseNonce()]) > 0 {
			return false
		}
		m.ResourceNames = slices.Sorted(maps.Keys(c.asked[typeURL]))
	}
	c.owed[typeURL] = c.owed[typeURL][1:]
	c.send(t, m)
	return true
}

func (c *modelClient) name() string { return fmt.Sprintf("client %d/%v", c.family, c.delta) }

// feed lets the session take in the newest snapshot.
func (c *modelClient) feed(t *rapid.T) {
	c.receive(t, c.sess.feed(c.now, c.world.snap))
}

// drain answers everything until nothing is left to say.
func (c *modelClient) drain(t *rapid.T) {
	c.feed(t)
	for range 10000 {
		moved := false
		for _, typeURL := range c.types() {
			for c.ask(t, typeURL) || c.answers(t, typeURL) {
				moved = true
			}
		}
		if moved {
			continue
		}
		at := c.sess.deadline()
		if at.IsZero() || !at.Before(c.sess.began.Add(time.Minute)) {
			break
		}
		// Only a new stream is owed anything after some time.
		if at.After(c.sess.began.Add(2 * time.Second)) {
			t.Fatalf("%s: the session waits for time: %s", c.name(), c.describe())
		}
		c.now = at
		c.receive(t, c.sess.tick(at))
	}
	if r := c.held[compile.RouteConfigurationType]["m"]; r != nil {
		now, _ := c.world.snap.Set(compile.RouteConfigurationType, c.view()).Get("m")
		c.returning = c.returning && string(r.GetResource().GetValue()) != string(now.Body)
	}
	for typeURL, owed := range c.owed {
		if len(owed) > 0 {
			t.Fatalf("%s: waits for endpoints before it answers %s, and the server waits for the answer: %v", c.name(), typeURL, c.waits)
		}
	}
}

// checkHolds fails when the client does not hold what the snapshot has, apart from
// what is bad.
func (c *modelClient) checkHolds(t *rapid.T, typeURL string, snap *snapshot.Snapshot) {
	set := snap.Set(typeURL, c.view())
	for r := range set.All() {
		if c.named(typeURL) && !c.asked[typeURL][r.Name] {
			continue
		}
		res := c.held[typeURL][r.Name]
		bad := strings.Contains(string(r.Body), badWord) && c.family != musterClient
		switch {
		case bad && res != nil && isBad(res):
			t.Fatalf("%s: accepted the bad %s of %s", c.name(), r.Name, typeURL)
		case bad:
		case res == nil:
			t.Fatalf("%s: lacks %s of %s: %s", c.name(), r.Name, typeURL, c.describe())
		case string(res.GetResource().GetValue()) != string(r.Body):
			t.Fatalf("%s: has %s of %s at %s, not at %s", c.name(), r.Name, typeURL, res.GetVersion(), r.Version)
		}
	}
	for name := range c.held[typeURL] {
		// A cluster that a refused route's last good version uses is kept on purpose.
		if _, ok := set.Get(name); !ok && !c.keptOnPurpose(typeURL, name) {
			t.Fatalf("%s: keeps %s of %s: %s", c.name(), name, typeURL, c.describe())
		}
	}
}

func (c *modelClient) keptOnPurpose(typeURL, name string) bool {
	cds := c.sess.find(compile.ClusterType)
	_, kept := cds.extra[name]
	return kept && (typeURL == compile.ClusterType || typeURL == compile.EndpointType) && c.sess.inUse(name)
}

func revOf(r *discoveryv3.Resource) uint64 {
	v, _, _ := snapshot.ParseVersion(r.GetVersion())
	return v.Revision
}

func sameContent(a, b *discoveryv3.Resource) bool {
	_, x, _ := snapshot.ParseVersion(a.GetVersion())
	_, y, _ := snapshot.ParseVersion(b.GetVersion())
	return x == y
}

// describe tells where the session is, for failures.
func (c *modelClient) describe() string {
	out := fmt.Sprintf("family %d delta %v", c.family, c.delta)
	for _, t := range c.sess.tracks {
		at := "nowhere"
		if t.at != nil {
			at = t.at.Version().String()
		}
		out += fmt.Sprintf("; %s at %s, %d on their way, %d queued, %d to answer, %d extra, goal %v", messageName(t.typeURL), at,
			len(t.flights), len(t.queue), len(t.answers), len(t.extra), t.goal != nil)
	}
	return out
}

// TestEveryClientEndsWithTheSnapshot runs the model.
func TestEveryClientEndsWithTheSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		clients := []*modelClient{
			newModelClient(w, true, envoyClient), newModelClient(w, true, otherClient), newModelClient(w, true, musterClient),
			newModelClient(w, false, envoyClient), newModelClient(w, false, otherClient),
		}
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				w.change(t)
				t.Logf("revision %d: %s", w.rev, w.last)
			},
			"restart": func(t *rapid.T) {
				w.restart()
				for _, c := range clients {
					if rapid.Bool().Draw(t, "reconnects") {
						c.connect(t)
					}
				}
			},
			"step": func(t *rapid.T) {
				for _, c := range clients {
					for range rapid.IntRange(0, 4).Draw(t, "steps") {
						typeURL := rapid.SampledFrom(c.types()).Draw(t, "type")
						if rapid.Bool().Draw(t, "ask") {
							// A client that starts begins with the clusters.
							if c.family == musterClient || c.started[compile.ClusterType] {
								c.ask(t, typeURL)
							} else {
								c.ask(t, compile.ClusterType)
							}
						} else {
							c.answers(t, typeURL)
						}
					}
					if rapid.Bool().Draw(t, "wake") {
						c.feed(t)
					}
				}
			},
			"reconnect": func(t *rapid.T) { clients[rapid.IntRange(0, len(clients)-1).Draw(t, "client")].connect(t) },
			"drain": func(t *rapid.T) {
				for _, c := range clients {
					c.drain(t)
					for _, typeURL := range c.types() {
						c.checkHolds(t, typeURL, w.snap)
					}
					if got := c.sess.synced; got != w.snap.Version() {
						t.Fatalf("%s: everything is answered, but the session is synced up to %s, not %s: %s", c.name(), got, w.snap.Version(), c.describe())
					}
				}
			},
		})
	})
}
