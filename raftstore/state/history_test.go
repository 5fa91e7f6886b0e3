package state

import (
	"errors"
	"strconv"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func itoa(i int) string { return strconv.Itoa(i) }

// counted makes a group whose service `a` has desc i at revision i.
func counted(t testing.TB, limit uint32, revisions int) *State {
	s := do(t, New(), &musterv1.Group{Id: "g", HistoryLimit: limit})
	for i := 1; i <= revisions; i++ {
		s = do(t, s, commit("g", put(service("a", itoa(i))), put(service("s"+itoa(i), ""))))
	}
	return s
}

func descAt(t *testing.T, g *Group, revision uint64) string {
	t.Helper()
	v, ok := g.At(revision)
	if !ok {
		t.Fatalf("revision %d is not kept", revision)
	}
	e, _ := v.Get(key2("service/a"))
	return e.Resource.GetService().GetDesc()
}

func TestHistoryKeepsTheLimitAndTheRevisionBefore(t *testing.T) {
	g := group(t, counted(t, 5, 12), "g")
	for rev := uint64(7); rev <= 12; rev++ {
		if got := descAt(t, g, rev); got != itoa(int(rev)) {
			t.Errorf("revision %d holds %s", rev, got)
		}
	}
	if _, ok := g.At(6); ok {
		t.Error("revision 6 is still kept")
	}
	if v, ok := g.At(0); !ok || v.Len() != 0 {
		t.Error("revision 0 is not the empty group")
	}
	if _, ok := g.At(13); ok {
		t.Error("revision 13 is known already")
	}
	var kept []uint64
	for r := range g.Revisions() {
		kept = append(kept, r.GetRevision())
		if len(r.GetChanges()) != 2 || r.GetChanges()[0].GetAfter() == nil {
			t.Errorf("revision %d lacks bodies", r.GetRevision())
		}
	}
	if len(kept) != 5 || kept[0] != 12 || kept[4] != 8 {
		t.Errorf("kept %v", kept)
	}
	if g.Oldest() != 7 {
		t.Errorf("oldest is %d", g.Oldest())
	}
}

func TestALowerLimitTrimsAtOnce(t *testing.T) {
	s := counted(t, 10, 12)
	s = do(t, s, update(&musterv1.Group{Id: "g", Name: "g", HistoryLimit: 2}))
	g := group(t, s, "g")
	if _, ok := g.RevisionInfo(10); ok {
		t.Error("revision 10 is still kept")
	}
	if descAt(t, g, 10) != "10" {
		t.Error("the view before the oldest kept revision is wrong")
	}
}

func TestChangesAreMergedPerKey(t *testing.T) {
	g := group(t, counted(t, 5, 12), "g")
	changes, ok := g.Changes(9, 12)
	if !ok || len(changes) != 4 {
		t.Fatalf("%v, %d changes", ok, len(changes))
	}
	first := changes[0]
	if first.Key != key2("service/a") || first.Before.Resource.GetService().GetDesc() != "9" || first.After.Resource.GetService().GetDesc() != "12" {
		t.Errorf("first change %+v", first)
	}
	back, ok := g.Changes(12, 9)
	if !ok || len(back) != 4 || back[0].Before != first.After || back[0].After != first.Before {
		t.Error("changes backwards are not the reverse")
	}
	if none, ok := g.Changes(12, 12); !ok || len(none) != 0 {
		t.Error("a revision differs from itself")
	}
	if all, ok := g.Changes(0, 12); !ok || len(all) != 13 {
		t.Errorf("from nothing: %d changes", len(all))
	}
	if _, ok := g.Changes(3, 12); ok {
		t.Error("changes from a trimmed revision")
	}
	if _, ok := g.Changes(9, 13); ok {
		t.Error("changes to a revision that is not there")
	}
}

func TestRollbackRestoresTheContentAsANewRevision(t *testing.T) {
	s := base(t) // revision 1
	was := group(t, s, "g").View()
	s = do(t, s,
		commit("g", put(route("a1", "ab", "moved"))),
		commit("g", del("service/a")),
		commit("g", del("consumer/alice"), put(consumer("bob"))),
		&musterv1.CommitCommand{Group: "g", RollbackTo: 1, Message: "undo"},
	)
	g := group(t, s, "g")
	if g.Revision() != 5 {
		t.Fatalf("revision %d", g.Revision())
	}
	info, _ := g.RevisionInfo(5)
	if info.GetRollbackTo() != 1 || info.GetMessage() != "undo" {
		t.Errorf("revision %v", info)
	}
	if keys(g.View()) != keys(was) {
		t.Errorf("\n got %s\nwant %s", keys(g.View()), keys(was))
	}
	for e := range was.Entries() {
		now, _ := g.View().Get(e.Key)
		if !equalContent(e.Resource, now.Resource) {
			t.Errorf("%s differs", e.Key)
		}
	}
	var members int
	for range g.View().RoutesOf("a") {
		members++
	}
	if members != 2 {
		t.Errorf("service a has %d routes", members)
	}
}

func TestARollbackToATrimmedRevisionSaysWhichAreKept(t *testing.T) {
	err := fails(t, counted(t, 5, 12), &musterv1.CommitCommand{Group: "g", RollbackTo: 3})
	var trimmed *TrimmedError
	if !errors.As(err, &trimmed) || trimmed.Oldest != 7 {
		t.Errorf("got %v", err)
	}
}

func TestOldRevisionsNeverChange(t *testing.T) {
	s := base(t)
	old := group(t, s, "g")
	before := keys(old.View())
	do(t, s, commit("g", del("service/a")), commit("g", put(service("z", ""))))
	if keys(old.View()) != before || old.Revision() != 1 {
		t.Error("a returned group changed")
	}
}

func TestRaisingTheEpochRaisesEveryGroups(t *testing.T) {
	s := base(t)
	s = do(t, s, &musterv1.RaiseEpochCommand{})
	if s.Epoch() != 2 || group(t, s, "g").Epoch() != 2 {
		t.Errorf("epoch %d", s.Epoch())
	}
	s = do(t, s, &musterv1.RaiseEpochCommand{AtLeast: 9}, &musterv1.RaiseEpochCommand{AtLeast: 4})
	if s.Epoch() != 10 || group(t, s, "g").Meta().GetEpoch() != 10 {
		t.Errorf("epoch %d", s.Epoch())
	}
}

func TestTheRevisionOfCreationTellsAResourceMadeAgainFromAChangedOne(t *testing.T) {
	// A limit of 2, so that some of it comes from the base of a restored snapshot.
	s := do(t, New(), &musterv1.Group{Id: "g", Name: "g", HistoryLimit: 2})
	for _, step := range []struct {
		change  *musterv1.Change
		created uint64
	}{
		{put(service("a", "1")), 1},
		{put(service("a", "2")), 1},
		{put(service("b", "1")), 1},
		{del("service/a"), 0},
		{put(service("a", "2")), 5},
		{put(service("b", "2")), 5},
		{put(service("b", "3")), 5},
		{put(service("b", "4")), 5},
	} {
		s = do(t, s, commit("g", step.change))
		restored, err := RestoreEncoded(s.Encoded())
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range map[string]View{"the state": group(t, s, "g").View(), "the restored one": group(t, restored, "g").View()} {
			e, there := v.Get(key2("service/a"))
			if there != (step.created != 0) || there && e.Created != step.created {
				t.Errorf("after %v: %s has %+v, created should be %d", step.change, name, e, step.created)
			}
		}
	}
}
