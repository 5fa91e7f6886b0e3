package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

const clusters = compile.ClusterType

func put(typeURL, name, body string) Upsert {
	return Upsert{Key: compile.Key{TypeURL: typeURL, Name: name}, Body: []byte(body)}
}

func key(typeURL, name string) compile.Key { return compile.Key{TypeURL: typeURL, Name: name} }

// show returns a set's content, and changes those of a sequence, to compare.
func show(t *Set) string {
	var out []string
	for r := range t.All() {
		out = append(out, fmt.Sprintf("%s=%s@%d", r.Name, r.Body, r.Rev))
	}
	return strings.Join(out, " ")
}

func changes(seq func(func(string, *Resource) bool)) string {
	var out []string
	for name, r := range seq {
		if r == nil {
			out = append(out, "-"+name)
		} else {
			out = append(out, "+"+name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestChangedSinceTellsWhatChangedAndWhatIsGone(t *testing.T) {
	s1 := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "a", "1"), put(clusters, "b", "1")}, nil)
	s2 := s1.Apply(Version{1, 2}, []Upsert{put(clusters, "a", "2")}, []compile.Key{key(clusters, "b")})
	s3 := s2.Apply(Version{1, 3}, []Upsert{put(clusters, "b", "3"), put(clusters, "c", "3")}, nil)
	set := s3.Set(clusters, View{})
	for rev, want := range []string{"+a +b +c", "+a +b +c", "+b +c", ""} {
		seq, ok := set.ChangedSince(uint64(rev))
		if got := changes(seq); !ok || got != want {
			t.Errorf("since %d: %q, want %q", rev, got, want)
		}
	}
	if got := changes(s2.Set(clusters, View{}).Changes(s1.Set(clusters, View{}))); got != "+a -b" {
		t.Errorf("from 1 to 2: %q", got)
	}
	if got := show(s1.Set(clusters, View{})); got != "a=1@1 b=1@1" {
		t.Errorf("the first snapshot became %q", got)
	}
}

func TestTheSameContentIsNoChange(t *testing.T) {
	s1 := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "a", "1")}, nil)
	s2 := s1.Apply(Version{1, 2}, []Upsert{put(clusters, "a", "1")}, []compile.Key{key(clusters, "never")})
	if s1.Set(clusters, View{}) != s2.Set(clusters, View{}) {
		t.Error("a set that did not change is not shared")
	}
	if s2.Set("never/heard", View{}) != s1.Set("never/seen", View{}) {
		t.Error("types without resources do not share their set")
	}
}

func TestVersionsAreShortOrderedAndOfTheContent(t *testing.T) {
	s := Empty("g", 3).Apply(Version{3, 41}, []Upsert{put(clusters, "a", "1")}, nil)
	r, _ := s.Set(clusters, View{}).Get("a")
	v, content, ok := ParseVersion(r.Version)
	if !ok || v != (Version{3, 41}) || len(content) != 8 || len(r.Version) > 16 {
		t.Fatalf("version %q", r.Version)
	}
	other := Empty("g", 1).Apply(Version{1, 7}, []Upsert{put(clusters, "a", "1")}, nil)
	o, _ := other.Set(clusters, View{}).Get("a")
	if !r.SameContent(o) || !r.IsContent([]byte(o.Version)) || r.Version == o.Version {
		t.Errorf("%q and %q are not the same content", r.Version, o.Version)
	}
	for _, odd := range []string{"", "1", "1.2", "1.2.short", "x.2.abcdefgh", "1.2.abcd.fgh", "1..abcdefgh", "99999999999999999999.1.abcdefgh"} {
		if _, content, ok := ParseVersion(odd); ok || content != odd {
			t.Errorf("%q is taken for a version of muster's", odd)
		}
	}
	if (Version{1, 9}).Less(Version{1, 9}) || !(Version{1, 9}).Less(Version{2, 1}) || (Version{2, 1}).Less(Version{1, 9}) {
		t.Error("versions order by epoch, then revision")
	}
}

func TestResourcesAreEncodedAsDiscoveryResources(t *testing.T) {
	s := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "a", "body")}, nil)
	r, _ := s.Set(clusters, View{}).Get("a")
	m := &discoveryv3.Resource{}
	if err := proto.Unmarshal(r.Encoded, m); err != nil {
		t.Fatal(err)
	}
	if m.GetName() != "a" || m.GetVersion() != r.Version || m.GetResource().GetTypeUrl() != clusters || string(m.GetResource().GetValue()) != "body" || string(r.Body) != "body" {
		t.Errorf("encoded as %v", m)
	}
	any, err := proto.Marshal(m.GetResource())
	if err != nil || string(any) != string(r.Any()) {
		t.Errorf("the Any is %q, %v", r.Any(), err)
	}
}

func TestVersionsOfAnUpstreamPassUnchanged(t *testing.T) {
	u := put(clusters, "a", "1")
	u.Version = "7.9.abcdefgh"
	s := Empty("g", 7).Apply(Version{7, 20}, []Upsert{u}, nil)
	r, _ := s.Set(clusters, View{}).Get("a")
	if r.Version != u.Version || r.Rev != 20 {
		t.Errorf("version %q, changed at %d", r.Version, r.Rev)
	}
	u.Version = "foreign"
	s = s.Apply(Version{7, 21}, []Upsert{u}, nil)
	if r, _ = s.Set(clusters, View{}).Get("a"); r.Version != "foreign" || !r.IsContent([]byte("foreign")) {
		t.Errorf("version %q", r.Version)
	}
}

// TestAnySequenceOfChangesIsWhatAMapSays compares sets with maps.
func TestAnySequenceOfChangesIsWhatAMapSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Empty("g", 1)
		type state struct {
			set     *Set
			content map[string]string
		}
		content := map[string]string{}
		past := []state{{s.Set(clusters, View{}), map[string]string{}}}
		v := Version{Epoch: 1}
		for range rapid.IntRange(1, 30).Draw(t, "revisions") {
			v.Revision++
			if rapid.IntRange(0, 15).Draw(t, "epoch") == 0 {
				v = Version{v.Epoch + 1, uint64(rapid.IntRange(1, 5).Draw(t, "revision"))}
			}
			var up []Upsert
			var remove []compile.Key
			changed := map[string]bool{}
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				name := string(rune('a' + rapid.IntRange(0, 7).Draw(t, "name")))
				if changed[name] {
					continue
				}
				changed[name] = true
				if rapid.Bool().Draw(t, "removed") {
					remove = append(remove, key(clusters, name))
					delete(content, name)
				} else {
					body := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "body"))
					up = append(up, put(clusters, name, body))
					content[name] = body
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "whole") == 0 {
				up = nil
				for name, body := range content {
					up = append(up, put(clusters, name, body))
				}
				s = s.Replace(v, up)
			} else {
				s = s.Apply(v, up, remove)
			}
			set := s.Set(clusters, View{})
			check(t, set, content)
			for _, p := range past {
				// Applied to what was, the changes give what is; and they change nothing
				// that is the same.
				got := maps.Clone(p.content)
				for name, r := range set.Changes(p.set) {
					if r == nil {
						delete(got, name)
						continue
					}
					got[name] = string(r.Body)
				}
				if !maps.Equal(got, content) {
					t.Fatalf("from %s to %s: %v, want %v", p.set.Version(), set.Version(), got, content)
				}
				if p.set.Same(set) && !maps.Equal(p.content, content) {
					t.Fatalf("different sets are the same: %v, %v", p.content, content)
				}
			}
			past = append(past, state{set, maps.Clone(content)})
		}
	})
}

func check(t *rapid.T, set *Set, content map[string]string) {
	if set.Len() != len(content) {
		t.Fatalf("%d resources, want %v", set.Len(), content)
	}
	var digest Digest
	var tally Tally
	for name, body := range content {
		r, ok := set.Get(name)
		if !ok || string(r.Body) != body {
			t.Fatalf("%s is %v, want %s", name, r, body)
		}
		digest.add(digestOf(name, r.content))
		tally.Add([]byte(name), []byte(r.Version))
	}
	if digest != set.Digest() {
		t.Fatalf("the digest is not the sum over %v", content)
	}
	if rev, ok := set.Holds(tally); !ok || rev != set.Version().Revision && set.Len() > 0 {
		t.Fatalf("a client that holds exactly the set is at %d, %v; the set at %s", rev, ok, set.Version())
	}
	if tally.Names() != set.Names() {
		t.Fatal("the names are not those of the set")
	}
}

func TestAClientOfAnEarlierSetIsRecognised(t *testing.T) {
	s := Empty("g", 1)
	var tallies []Tally
	for rev := range uint64(10) {
		s = s.Apply(Version{1, rev + 1}, []Upsert{put(clusters, fmt.Sprint("c", rev), "1")}, nil)
		var tally Tally
		for r := range s.Set(clusters, View{}).All() {
			tally.Add([]byte(r.Name), []byte(r.Version))
		}
		tallies = append(tallies, tally)
	}
	for i, tally := range tallies {
		if rev, ok := s.Set(clusters, View{}).Holds(tally); !ok || rev != uint64(i+1) {
			t.Errorf("a client of revision %d is taken to be at %d, %v", i+1, rev, ok)
		}
	}
	var strange Tally
	strange.Add([]byte("c0"), []byte("1.1.abcdefgh"))
	if rev, ok := s.Set(clusters, View{}).Holds(strange); ok {
		t.Errorf("a strange client is taken to be at %d", rev)
	}
}

func TestOldTombstonesAreDroppedAndSetsComparedInstead(t *testing.T) {
	s := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "stays", "1"), put(clusters, "goes", "1")}, nil)
	first := s.Set(clusters, View{})
	s = s.Apply(Version{1, 2}, nil, []compile.Key{key(clusters, "goes")})
	for rev := uint64(3); rev < 3+3*minTombstones; rev += 2 {
		name := fmt.Sprint("x", rev)
		s = s.Apply(Version{1, rev}, []Upsert{put(clusters, name, "1")}, nil)
		s = s.Apply(Version{1, rev + 1}, nil, []compile.Key{key(clusters, name)})
	}
	set := s.Set(clusters, View{})
	if n := set.gone.Len(); n > minTombstones {
		t.Errorf("%d tombstones are kept", n)
	}
	if _, ok := set.ChangedSince(1); ok {
		t.Error("revision 1 is remembered")
	}
	if got := changes(set.Changes(first)); got != "-goes" {
		t.Errorf("since the first set: %q", got)
	}
	recent := s.Version().Revision - 4
	seq, ok := set.ChangedSince(recent)
	if !ok || changes(seq) == "" {
		t.Errorf("since %d: %v", recent, ok)
	}
}

func TestViewsHaveResourcesOfTheirOwn(t *testing.T) {
	own := put(clusters, "own", "grpc")
	own.View = compile.ViewGRPC
	shadow := put(clusters, "both", "grpc")
	shadow.View = compile.ViewGRPC
	s := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "both", "all"), put(clusters, "all", "1"), own, shadow}, nil)
	grpc, delta := View{Client: compile.ViewGRPC}, View{Client: compile.ViewDelta}
	if got := show(s.Set(clusters, grpc)); got != "all=1@1 both=grpc@1 own=grpc@1" {
		t.Errorf("gRPC clients see %q", got)
	}
	if got := show(s.Set(clusters, delta)); got != "all=1@1 both=all@1" {
		t.Errorf("others see %q", got)
	}
	// A change for all is seen by all, unless the view has its own.
	s2 := s.Apply(Version{1, 2}, []Upsert{put(clusters, "both", "all2"), put(clusters, "all", "2")}, nil)
	if got := changes(s2.Set(clusters, grpc).Changes(s.Set(clusters, grpc))); got != "+all" {
		t.Errorf("gRPC clients see the change %q", got)
	}
	if got := changes(s2.Set(clusters, delta).Changes(s.Set(clusters, delta))); got != "+all +both" {
		t.Errorf("others see the change %q", got)
	}
	// A removal takes the name out of every view.
	s3 := s2.Apply(Version{1, 3}, nil, []compile.Key{key(clusters, "both"), key(clusters, "own")})
	if got := show(s3.Set(clusters, grpc)); got != "all=2@3" { // touched
		t.Errorf("after the removal gRPC clients see %q", got)
	}
	if got := changes(s3.Set(clusters, grpc).Changes(s2.Set(clusters, grpc))); got != "+all -both -own" {
		t.Errorf("gRPC clients see the removal %q", got)
	}
	// What a whole replacement leaves out is gone from the views, too.
	s4 := s3.Apply(Version{1, 4}, []Upsert{own}, nil).Replace(Version{1, 5}, []Upsert{put(clusters, "all", "2")})
	if got := show(s4.Set(clusters, grpc)); got != "all=2@5" {
		t.Errorf("after the replacement gRPC clients see %q", got)
	}
}

func routeConfig(name string, vhds bool) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendString(b, name)
	if vhds {
		b = protowire.AppendTag(b, routeConfigVhds, protowire.BytesType)
		b = protowire.AppendBytes(b, nil)
	}
	return b
}

func TestSotWRouteConfigurationsHaveTheirVirtualHostsInline(t *testing.T) {
	rds, vhds := compile.RouteConfigurationType, compile.VirtualHostType
	sotw := View{Client: compile.ViewSotW}
	s1 := Empty("g", 1).Apply(Version{1, 1}, []Upsert{
		{Key: key(rds, "m"), Body: routeConfig("m", true)}, {Key: key(rds, "plain"), Body: routeConfig("plain", false)},
		put(vhds, "m/a", "AAAA"), put(vhds, "other/x", "XXXX"),
	}, nil)
	inlined := func(s *Snapshot) *Resource {
		r, _ := s.Set(rds, sotw).Get("m")
		return r
	}
	if body := string(inlined(s1).Body); !strings.Contains(body, "AAAA") || strings.Contains(body, "XXXX") {
		t.Errorf("inlined as %q", body)
	}
	if r, _ := s1.Set(rds, View{Client: compile.ViewDelta}).Get("m"); strings.Contains(string(r.Body), "AAAA") {
		t.Error("clients of the incremental protocol get it inline, too")
	}
	// A virtual host changes, then the other route configuration: a client that
	// missed both sees both.
	s2 := s1.Apply(Version{1, 2}, []Upsert{put(vhds, "m/b", "BBBB")}, nil)
	s3 := s2.Apply(Version{1, 3}, []Upsert{{Key: key(rds, "plain"), Body: routeConfig("changed", false)}}, nil)
	if got := changes(s3.Set(rds, sotw).Changes(s1.Set(rds, sotw))); got != "+m +plain" {
		t.Errorf("from 1 to 3: %q", got)
	}
	if got := changes(s3.Set(rds, sotw).Changes(s2.Set(rds, sotw))); got != "+plain" {
		t.Errorf("from 2 to 3: %q", got)
	}
	// Nothing of it changes: the set is shared.
	s4 := s3.Apply(Version{1, 4}, []Upsert{put(clusters, "c", "1")}, nil)
	if s4.Set(rds, sotw) != s3.Set(rds, sotw) {
		t.Error("the inlined set is made anew")
	}
	// A virtual host that is gone is gone from it.
	s5 := s4.Apply(Version{1, 5}, nil, []compile.Key{key(vhds, "m/a")})
	if body := string(inlined(s5).Body); strings.Contains(body, "AAAA") || !strings.Contains(body, "BBBB") {
		t.Errorf("after a removal inlined as %q", body)
	}
	if got := changes(s5.Set(rds, sotw).Changes(s4.Set(rds, sotw))); got != "+m" {
		t.Errorf("from 4 to 5: %q", got)
	}
}

func TestTheManifestSaysWhatARevisionConsistsOf(t *testing.T) {
	view := View{Client: compile.ViewDelta}
	s1 := Empty("g", 2).Apply(Version{2, 5}, []Upsert{put(clusters, "a", "1"), put(clusters, "b", "1"), put(compile.EndpointType, "a", "1")}, nil)
	s2 := s1.Apply(Version{2, 6}, nil, []compile.Key{key(compile.EndpointType, "a")})
	r, ok := s1.Set(ManifestType, view).Get("g")
	if !ok || s1.Set(ManifestType, view).Len() != 1 {
		t.Fatal("no manifest of the group's name")
	}
	m := &musterv1.Manifest{}
	if err := proto.Unmarshal(r.Body, m); err != nil {
		t.Fatal(err)
	}
	if m.GetGroup() != "g" || m.GetEpoch() != 2 || m.GetRevision() != 5 || len(m.GetTypes()) != 2 {
		t.Errorf("manifest %v", m)
	}
	for _, d := range m.GetTypes() {
		set := s1.Set(d.GetTypeUrl(), view)
		digest := set.Digest()
		if d.GetCount() != uint64(set.Len()) || string(d.GetDigest()) != string(digest.Bytes()) {
			t.Errorf("of %s it says %d, %x", d.GetTypeUrl(), d.GetCount(), d.GetDigest())
		}
	}
	if got := changes(s2.Set(ManifestType, view).Changes(s1.Set(ManifestType, view))); got != "+g" {
		t.Errorf("from one to the next: %q", got)
	}
	// A revision that changes nothing has a manifest of its own, too.
	s3 := s2.Apply(Version{2, 7}, nil, nil)
	if got := changes(s3.Set(ManifestType, view).Changes(s2.Set(ManifestType, view))); got != "+g" {
		t.Errorf("to a revision without changes: %q", got)
	}
}

// TestDataPlanesWithoutADSShareTheirVariant: the set is derived once, keeps its
// versions' order, and what has no sources is what everyone has.
func TestDataPlanesWithoutADSShareTheirVariant(t *testing.T) {
	cluster := func(name, comment string) []byte {
		b, err := proto.Marshal(&clusterv3.Cluster{
			Name: name, AltStatName: comment, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	up := func(name, comment string) Upsert {
		return Upsert{Key: compile.Key{TypeURL: compile.ClusterType, Name: name}, Body: cluster(name, comment)}
	}
	view := View{Client: compile.ViewDelta, Sources: compile.Sources{Cluster: "muster_xds"}}
	one := Empty("g", 1).Apply(Version{1, 1}, []Upsert{up("a", ""), up("b", "")}, nil)
	two := one.Apply(Version{1, 2}, []Upsert{up("b", "x")}, nil)
	before, after := one.Set(compile.ClusterType, view), two.Set(compile.ClusterType, view)
	if before != one.Set(compile.ClusterType, view) {
		t.Error("it is derived again for each that asks")
	}
	r, _ := after.Get("b")
	var m clusterv3.Cluster
	if err := proto.Unmarshal(r.Body, &m); err != nil {
		t.Fatal(err)
	}
	if got := m.GetEdsClusterConfig().GetEdsConfig().GetApiConfigSource().GetGrpcServices()[0].GetEnvoyGrpc().GetClusterName(); got != "muster_xds" {
		t.Errorf("endpoints come from %q", got)
	}
	var changed []string
	for name := range after.Changes(before) {
		changed = append(changed, name)
	}
	if !slices.Equal(changed, []string{"b"}) {
		t.Errorf("changed: %v, want b alone", changed)
	}
	if plain, _ := two.Set(compile.ClusterType, View{Client: compile.ViewDelta}).Get("b"); plain.SameContent(r) {
		t.Error("those with ADS got the same")
	}
}

// TestARemovalShowsInWhatIsLeft: a client that comes back shows the versions of what
// it holds. Were the newest of them older than a removal, a server that does not know
// of the removal yet could not tell that the client does.
func TestARemovalShowsInWhatIsLeft(t *testing.T) {
	newest := func(s *Snapshot) (v Version) {
		for r := range s.Set(clusters, View{Client: compile.ViewDelta}).All() {
			own, _, ok := ParseVersion(r.Version)
			if !ok {
				t.Fatalf("version %q", r.Version)
			}
			if v.Less(own) {
				v = own
			}
		}
		return v
	}
	big := put(clusters, "a", strings.Repeat("large", 100))
	before := Empty("g", 1).Apply(Version{1, 1}, []Upsert{big, put(clusters, "b", "1"), put(clusters, "c", "12"), put(clusters, "gone", "1")}, nil)
	after := before.Apply(Version{1, 2}, nil, []compile.Key{key(clusters, "gone")})
	if v := newest(after); v != (Version{1, 2}) {
		t.Errorf("after a removal in 1.2 the newest version is %v", v)
	}
	was, is := before.Set(clusters, View{}), after.Set(clusters, View{})
	if got := changes(is.Changes(was)); got != "+b -gone" {
		t.Errorf("the change is %q: want the removal, and the smallest of what is left", got)
	}
	b1, _ := was.Get("b")
	b2, _ := is.Get("b")
	if !b1.SameContent(b2) || is.Len() != 3 {
		t.Error("its content is another")
	}
	// A change beside the removal shows it already.
	both := before.Apply(Version{1, 2}, []Upsert{put(clusters, "c", "2")}, []compile.Key{key(clusters, "gone")})
	if got := changes(both.Set(clusters, View{}).Changes(was)); got != "+c -gone" {
		t.Errorf("the change is %q", got)
	}
	// Nothing is left that could show it.
	none := after.Apply(Version{1, 3}, nil, []compile.Key{key(clusters, "a"), key(clusters, "b"), key(clusters, "c")})
	if got := none.Set(clusters, View{}).Len(); got != 0 {
		t.Errorf("%d resources are left", got)
	}
}

func TestANameOfAClientsOwnMakingHasTheTemplatesResource(t *testing.T) {
	s := Empty("g", 1).WithTemplate(compile.ListenerType, func(name string) ([]byte, bool) {
		return []byte("made for " + name), strings.HasPrefix(name, "server/")
	})
	get := func(s *Snapshot, typeURL, name string) string {
		r, ok := s.Set(typeURL, View{Client: compile.ViewGRPC}).Get(name)
		if !ok {
			return ""
		}
		return string(r.Body) + " " + r.Version[:4]
	}
	check := func(s *Snapshot, when string, want map[string]string) {
		t.Helper()
		for name, want := range want {
			if got := get(s, compile.ListenerType, name); got != want {
				t.Errorf("%s: %s is %q, want %q", when, name, got, want)
			}
		}
		if got := get(s, compile.ClusterType, "server/a"); got != "" {
			t.Errorf("%s: a cluster from a template of listeners: %q", when, got)
		}
	}
	check(s, "at first", map[string]string{"server/a": "made for server/a 1.0.", "other": ""})
	s = s.Apply(Version{1, 1}, []Upsert{{Key: compile.Key{TypeURL: compile.ListenerType, Name: "server/b"}, Body: []byte("own")}}, nil)
	check(s, "with one of its own", map[string]string{"server/a": "made for server/a 1.0.", "server/b": "own 1.1."})
	if n := s.Set(compile.ListenerType, View{}).Len(); n != 1 {
		t.Errorf("%d resources are listed", n)
	}
	s = s.Apply(Version{2, 2}, nil, nil)
	check(s, "in another epoch", map[string]string{"server/a": "made for server/a 2.0.", "server/b": "own 1.1."})
	s = s.Apply(Version{2, 3}, nil, []compile.Key{{TypeURL: compile.ListenerType, Name: "server/b"}})
	check(s, "without it again", map[string]string{"server/b": "made for server/b 2.0."})
}
