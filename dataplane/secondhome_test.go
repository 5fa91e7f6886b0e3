package dataplane

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/manifest"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// shelf is a bucket in memory.
type shelf struct {
	mu      sync.Mutex
	objects map[string][]byte
	fail    error         // what every call returns
	hang    bool          // calls end with their context
	calls   []string      // what was done, in order
	reached chan struct{} // one for each call that hangs
	left    chan struct{} // one for each that was given up
}

func newShelf() *shelf {
	return &shelf{objects: map[string][]byte{}, reached: make(chan struct{}, 100), left: make(chan struct{}, 100)}
}

func (s *shelf) call(ctx context.Context, what, name string) error {
	s.mu.Lock()
	s.calls = append(s.calls, what+" "+name)
	fail, hang := s.fail, s.hang
	s.mu.Unlock()
	if hang {
		s.reached <- struct{}{}
		<-ctx.Done()
		s.left <- struct{}{}
		return ctx.Err()
	}
	return fail
}

func (s *shelf) List(ctx context.Context, prefix string) ([]Object, error) {
	if err := s.call(ctx, "list", prefix); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Object
	for name, b := range s.objects {
		if strings.HasPrefix(name, prefix) {
			out = append(out, Object{Name: name, Size: int64(len(b))})
		}
	}
	return out, nil
}

func (s *shelf) Get(ctx context.Context, name string) ([]byte, error) {
	if err := s.call(ctx, "get", name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[name]
	if !ok {
		return nil, ErrNoObject
	}
	return bytes.Clone(b), nil
}

func (s *shelf) Put(ctx context.Context, name string, content []byte) error {
	if err := s.call(ctx, "put", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = bytes.Clone(content)
	return nil
}

func (s *shelf) Delete(ctx context.Context, name string) error {
	if err := s.call(ctx, "delete", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

func (s *shelf) set(fail error, hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.hang = fail, hang
}

func (s *shelf) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

func (s *shelf) edit(name string, f func([]byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = f(bytes.Clone(s.objects[name]))
}

func (s *shelf) did(what string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if strings.HasPrefix(c, what) {
			n++
		}
	}
	return n
}

func home(t *testing.T, at ObjectStore, change ...func(*SecondHomeConfig)) *SecondHome {
	t.Helper()
	cfg := SecondHomeConfig{Store: at, Interval: 10 * time.Millisecond, Timeout: 5 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	h, err := NewSecondHome(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// genuine returns a resource of which the version says the body, as servers do.
func genuine(typeURL, name, body string, epoch, revision uint64) *Resource {
	sum := sha256.Sum256([]byte(body))
	return &Resource{
		Name: name, Version: fmt.Sprintf("%d.%d.%s", epoch, revision, base64.RawURLEncoding.EncodeToString(sum[:6])),
		Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(body)},
	}
}

// revisionOf is a whole revision of the group "id-of-g" with its Manifest, signed
// when there is a key. Resources are name=body.
func revisionOf(t *testing.T, of string, epoch, revision uint64, key ed25519.PrivateKey, entries ...string) *State {
	t.Helper()
	s := emptyState().at(epoch, revision)
	for _, e := range entries {
		name, body, _ := strings.Cut(e, "=")
		own := of
		if of == RelayType { // <view>|<type>|<name>
			own = "type.googleapis.com/" + strings.Split(name, "|")[1]
		}
		s = s.with(of, []*Resource{genuine(own, name, body, epoch, revision)}, nil)
	}
	d := s.types[of].digest
	m := &musterv1.Manifest{Epoch: epoch, Revision: revision, Group: "id-of-g", Types: []*musterv1.TypeDigest{
		{TypeUrl: of, Count: uint64(s.Len(of)), Digest: d.bytes()},
	}}
	if key != nil {
		manifest.Sign(m, key)
	}
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return s.withManifest(&Resource{Version: "v", Body: body}, m)
}

const clusterName = "envoy.config.cluster.v3.Cluster"

func relayed(t *testing.T, epoch, revision uint64, key ed25519.PrivateKey, body string) *State {
	t.Helper()
	return revisionOf(t, RelayType, epoch, revision, key, "all|"+clusterName+"|a="+body,
		"all|envoy.config.route.v3.RouteConfiguration|r=everyone's", "delta|envoy.config.route.v3.RouteConfiguration|r=mine",
		"sotw|envoy.config.route.v3.RouteConfiguration|s=another's", "all|x.y.Z|x=of a type that was not asked for")
}

func put(t *testing.T, h *SecondHome, s *State, types ...string) kept {
	t.Helper()
	done, err := h.keep(t.Context(), "id-of-g", s, types)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestASecondHomeKeepsTheNewestFewOfAGroup(t *testing.T) {
	at := newShelf()
	h := home(t, at, func(c *SecondHomeConfig) { c.Keep = 3 })
	for revision := uint64(1); revision <= 6; revision++ {
		put(t, h, relayed(t, 1, revision, nil, "x"), RelayType)
	}
	put(t, h, revisionOf(t, ClusterType, 1, 6, nil, "a=x"), ClusterType) // what data planes write counts apart
	at.objects["groups/id-of-g/notes.txt"] = []byte("somebody's")
	kept, err := h.Snapshots(t.Context(), "id-of-g")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range kept {
		got = append(got, fmt.Sprint(k.Epoch, ".", k.Revision, " ", k.Relay))
	}
	want(t, "kept", strings.Join(got, ", "), "1.6 true, 1.6 false, 1.5 true, 1.4 true")
}

func TestAnOlderRevisionNeverTakesThePlaceOfANewerOne(t *testing.T) {
	at := newShelf()
	h := home(t, at)
	put(t, h, relayed(t, 2, 5, nil, "x"), RelayType)
	for _, v := range []version{{2, 4}, {1, 900}, {2, 5}} {
		before := at.names()
		older := v != version{2, 5}
		if done := put(t, h, relayed(t, v.Epoch, v.Revision, nil, "old"), RelayType); (done.newer != "") != older || done.there == older || done.bytes > 0 {
			t.Errorf("%v was written, or it is not said why not: %+v", v, done)
		}
		if after := at.names(); !slices.Equal(before, after) {
			t.Errorf("after %v there are %v", v, after)
		}
	}
	// A higher epoch is newer, whatever its revision.
	if done := put(t, h, relayed(t, 3, 1, nil, "x"), RelayType); done.bytes == 0 {
		t.Errorf("a higher epoch was not written: %+v", done)
	}
	s, err := h.newest(t.Context(), "id-of-g", []string{RelayType}, version{}, nil)
	if err != nil || s.Epoch() != 3 {
		t.Errorf("the newest is %v, %v", s, err)
	}
	// Who has it, or more, takes and fetches nothing.
	for _, have := range []version{{3, 1}, {3, 9}, {4, 1}} {
		fetched := at.did("get groups/")
		if s, err := h.newest(t.Context(), "id-of-g", []string{RelayType}, have, nil); s != nil || err != nil || at.did("get groups/") != fetched {
			t.Errorf("who has %v takes %v, %v", have, s, err)
		}
	}
}

func TestADataPlaneTakesItsViewOfWhatARelayWrote(t *testing.T) {
	at := newShelf()
	h := home(t, at)
	put(t, h, relayed(t, 1, 7, nil, "x"), RelayType)
	s, err := h.newest(t.Context(), "id-of-g", nil, version{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Epoch() != 1 || s.Revision() != 7 || len(s.Types()) != 2 {
		t.Errorf("it is %d.%d with %v", s.Epoch(), s.Revision(), s.Types())
	}
	r, _ := s.Get(RouteConfigurationType, "r")
	if c, ok := s.Get(ClusterType, "a"); !ok || string(c.Body.GetValue()) != "x" || string(r.Body.GetValue()) != "mine" || s.Len(RouteConfigurationType) != 1 {
		t.Errorf("clusters %s, routes %s %v", names(s, ClusterType), names(s, RouteConfigurationType), r)
	}
}

func TestWhatADataPlaneWroteIsNotForRelays(t *testing.T) {
	h := home(t, newShelf())
	put(t, h, revisionOf(t, ClusterType, 1, 7, nil, "a=x"), ClusterType)
	if s, err := h.newest(t.Context(), "id-of-g", []string{RelayType}, version{}, nil); s != nil || err != nil {
		t.Errorf("a relay took %v, %v", s, err)
	}
	if s, err := h.newest(t.Context(), "id-of-g", []string{ClusterType}, version{}, nil); s == nil || err != nil {
		t.Errorf("a data plane took %v, %v", s, err)
	}
}

func TestAVariantSharesNothingButTheStore(t *testing.T) {
	at := newShelf()
	h := home(t, at)
	put(t, h, relayed(t, 1, 7, nil, "usual"), RelayType)
	put(t, h.Variant("grpc"), relayed(t, 1, 3, nil, "of gRPC clients"), RelayType)
	for of, want := range map[*SecondHome]uint64{h: 7, h.Variant("grpc"): 3} {
		s, err := of.newest(t.Context(), "id-of-g", []string{RelayType}, version{}, nil)
		if err != nil || s.Revision() != want {
			t.Errorf("variant %q has %v, %v", of.variant, s, err)
		}
	}
	if len(at.names()) != 2 {
		t.Errorf("there is %v", at.names())
	}
}

func TestAGroupIsFoundByItsNames(t *testing.T) {
	at := newShelf()
	k := &keeper{home: home(t, at), group: "g", alias: "../the group", types: []string{RelayType}, log: slog.New(slog.DiscardHandler), hook: func(SecondHomeWritten) {}}
	if err := k.keep(t.Context(), relayed(t, 1, 1, nil, "x")); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"g", "../the group", "id-of-g"} {
		if kept, err := k.home.Snapshots(t.Context(), word); err != nil || len(kept) != 1 || kept[0].Group != "id-of-g" {
			t.Errorf("by %q: %v, %v", word, kept, err)
		}
	}
	if kept, err := k.home.Snapshots(t.Context(), "other"); err != nil || len(kept) != 0 {
		t.Errorf("by the name of no group: %v, %v", kept, err)
	}
	for name := range at.objects {
		if !strings.HasPrefix(name, "groups/id-of-g/") && name != "names/g" && name != "names/%2E%2E%2Fthe%20group" {
			t.Errorf("there is %s", name)
		}
	}
}

func TestADamagedOrForeignSnapshotOfTheSecondHomeIsRefusedAndTheOneBeforeIsUsed(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(c *SecondHomeConfig) { c.ManifestKeys = []ed25519.PublicKey{pub} }
	sealed := func(c *SecondHomeConfig) { c.Key = []byte("sixteen bytes or more") }
	raw := func(s *State, group string, v version, key string) func(*testing.T, *shelf, string) {
		return func(t *testing.T, at *shelf, name string) {
			aead, err := cacheAEAD([]byte(key))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if _, err := writeBase(&b, cacheHeader{Kind: "base", Group: group, Epoch: v.Epoch, Revision: v.Revision}, s, aead); err != nil {
				t.Fatal(err)
			}
			at.edit(name, func([]byte) []byte { return b.Bytes() })
		}
	}
	forged := relayed(t, 1, 8, key, "x")
	changed, _ := forged.Get(RelayType, "all|"+clusterName+"|a")
	forged = forged.with(RelayType, []*Resource{{Name: changed.Name, Version: changed.Version, Body: &anypb.Any{TypeUrl: ClusterType, Value: []byte("evil")}}}, nil)
	short := relayed(t, 1, 8, key, "x").with(RelayType, nil, []string{changed.Name})
	for what, test := range map[string]struct {
		damage func(*testing.T, *shelf, string)
		change []func(*SecondHomeConfig)
		want   error
	}{
		"a flipped bit": {damage: func(_ *testing.T, at *shelf, name string) {
			at.edit(name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, want: errChecksum},
		"truncated": {damage: func(_ *testing.T, at *shelf, name string) {
			at.edit(name, func(b []byte) []byte { return b[:len(b)-9] })
		}, want: errTruncated},
		"empty":                  {damage: func(_ *testing.T, at *shelf, name string) { at.edit(name, func([]byte) []byte { return nil }) }, want: errNotCache},
		"of another group":       {damage: raw(relayed(t, 1, 8, key, "x"), "other", version{1, 8}, ""), want: errForeignGroup},
		"of another version":     {damage: raw(relayed(t, 1, 7, key, "x"), "id-of-g", version{1, 7}, ""), want: errVersionName},
		"a manifest of another":  {damage: raw(relayed(t, 1, 7, key, "x").at(1, 8), "id-of-g", version{1, 8}, ""), want: errIncomplete},
		"a resource is missing":  {damage: raw(short, "id-of-g", version{1, 8}, ""), want: errIncomplete},
		"signed by a stranger":   {damage: raw(relayed(t, 1, 8, stranger, "x"), "id-of-g", version{1, 8}, ""), change: []func(*SecondHomeConfig){signed}, want: manifest.ErrSignature},
		"not signed":             {damage: raw(relayed(t, 1, 8, nil, "x"), "id-of-g", version{1, 8}, ""), change: []func(*SecondHomeConfig){signed}, want: manifest.ErrUnsigned},
		"another body":           {damage: raw(forged, "id-of-g", version{1, 8}, ""), change: []func(*SecondHomeConfig){signed}, want: errContent},
		"not encrypted":          {damage: raw(relayed(t, 1, 8, key, "x"), "id-of-g", version{1, 8}, ""), change: []func(*SecondHomeConfig){sealed}, want: errPlain},
		"encrypted with another": {damage: raw(relayed(t, 1, 8, key, "x"), "id-of-g", version{1, 8}, "another key of sixteen"), change: []func(*SecondHomeConfig){sealed}, want: errWrongKey},
	} {
		t.Run(what, func(t *testing.T) {
			at := newShelf()
			h := home(t, at, test.change...)
			put(t, h, relayed(t, 1, 6, key, "good"), RelayType)
			put(t, h, relayed(t, 1, 8, key, "x"), RelayType)
			all := at.names()
			test.damage(t, at, all[len(all)-1])
			var reasons []error
			s, err := h.newest(t.Context(), "id-of-g", nil, version{}, func(_ KeptSnapshot, reason error) { reasons = append(reasons, reason) })
			if err != nil || s == nil || s.Revision() != 6 {
				t.Fatalf("used: %v, %v", s, err)
			}
			if len(reasons) != 1 || !errors.Is(reasons[0], test.want) {
				t.Errorf("refused because of %v, want %v", reasons, test.want)
			}
		})
	}
}

func TestASignedRevisionWhoseResourcesWereChangedIsNotApplied(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	whole := revisionOf(t, ClusterType, 1, 1, key, "a=x")
	for body, want := range map[string]bool{"x": true, "evil": false} {
		talk := newTalk(t, ManifestAuto, emptyState(), false)
		talk.s.keys = []ed25519.PublicKey{pub}
		r, _ := whole.Get(ClusterType, "a")
		resp := response(ClusterType)
		resp.Resources = append(resp.Resources, wireResource(&Resource{Name: "a", Version: r.Version, Body: &anypb.Any{TypeUrl: ClusterType, Value: []byte(body)}}))
		if st := talk.receive(resp); (st.leave == nil) != want {
			t.Errorf("body %q: %v", body, st.leave)
		}
	}
}

// TestWritingHoldsUpNobody: revisions come much faster than a store takes them.
func TestTheSecondHomeIsWrittenSeldomAndWithTheNewestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := newShelf()
		cfg := Config{SecondHome: home(t, at, func(c *SecondHomeConfig) { c.Interval = 10 * time.Second }), TypeURLs: []string{RelayType}, Group: "g", Logger: slog.New(slog.DiscardHandler)}
		k := newKeeper(&cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { k.run(ctx) })
		for revision := uint64(1); revision <= 300; revision++ { // for 30 s
			k.offer(relayed(t, 1, revision, nil, "x"))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(20 * time.Second)
		if n := at.did("put groups/"); n < 3 || n > 5 {
			t.Errorf("%d objects were put in 50 s", n)
		}
		if all := at.names(); !strings.Contains(all[len(all)-2], ".00000000000000000300.") {
			t.Errorf("the newest is not there: %v", all)
		}
		cancel()
		running.Wait()
	})
}

func TestAFailingStoreIsTriedAgainAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := newShelf()
		at.set(errors.New("503 slow down"), false)
		var log bytes.Buffer
		var failed, written int
		cfg := Config{SecondHome: home(t, at, func(c *SecondHomeConfig) { c.Interval = 10 * time.Second }), TypeURLs: []string{RelayType}, Group: "g", Logger: slog.New(slog.NewTextHandler(&log, nil))}
		cfg.Hooks.SecondHomeWritten = func(w SecondHomeWritten) {
			if w.Err != nil {
				failed++
			} else {
				written++
			}
		}
		k := newKeeper(&cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { k.run(ctx) })
		k.offer(relayed(t, 1, 1, nil, "x"))
		time.Sleep(time.Hour)
		synctest.Wait()
		if failed < 5 || failed > 30 {
			t.Errorf("tried %d times within an hour", failed)
		}
		if !strings.Contains(log.String(), "configuration not kept in the second home") || !strings.Contains(log.String(), "503 slow down") {
			t.Errorf("the log says: %s", &log)
		}
		at.set(nil, false)
		time.Sleep(keepRetryMax + 10*time.Second)
		synctest.Wait()
		if written != 1 || len(at.names()) != 2 {
			t.Errorf("written %d times: %v", written, at.names())
		}
		cancel()
		running.Wait()
	})
}
