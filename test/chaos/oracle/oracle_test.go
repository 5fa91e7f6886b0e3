package oracle

import (
	"strings"
	"testing"
	"time"
)

func put(client, slot int, value uint32, call, ret time.Duration, out Outcome, rev uint64) Op {
	return Op{Client: client, Group: "g", Kind: Put, Slot: slot, Value: value, Call: call, Return: ret, Outcome: out, Epoch: 1, Revision: rev}
}

func read(client, slot int, value uint32, call, ret time.Duration, rev uint64) Op {
	op := Op{Client: client, Group: "g", Kind: Read, Slot: slot, Call: call, Return: ret, Epoch: 1, Revision: rev}
	op.Values[slot] = value
	return op
}

func all(rev uint64, slot0 uint32) Op {
	return Op{Client: 9, Group: "g", Kind: ReadAll, Call: 100, Return: 101, Epoch: 1, Revision: rev, Values: Values{slot0}}
}

func TestTheHistoryTellsTruthFromLoss(t *testing.T) {
	expect := func(v uint64) *uint64 { return &v }
	conditional := func(op Op, expected uint64) Op { op.Expected = expect(expected); return op }
	for name, c := range map[string]struct {
		ops  []Op
		last Op
		want string // part of a violation; empty: none
	}{
		"writes in order": {[]Op{put(1, 0, 10, 1, 2, OK, 1), put(1, 0, 11, 3, 4, OK, 2), read(2, 0, 11, 5, 6, 2)}, all(2, 11), ""},
		"an acknowledged write is lost": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), put(1, 0, 11, 3, 4, OK, 2)}, all(1, 10), "I1: an acknowledged write is lost"},
		"a stale read": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), put(1, 0, 11, 3, 4, OK, 2), read(2, 0, 10, 5, 6, 1)}, all(2, 11), "I5"},
		"a read during the write may see either": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), put(1, 0, 11, 3, 8, OK, 2), read(2, 0, 10, 5, 6, 1)}, all(2, 11), ""},
		"a failed write appears": {[]Op{put(1, 0, 10, 1, 2, Failed, 0)}, all(1, 10), "I1: a write that failed appeared"},
		"an unknown write appears late": {
			[]Op{put(1, 0, 10, 1, 2, Unknown, 0), read(2, 0, 0, 3, 4, 0)}, all(1, 10), ""},
		"an unknown write never happens": {[]Op{put(1, 0, 10, 1, 2, Unknown, 0)}, all(0, 0), ""},
		"an unknown write happens and is undone": {
			[]Op{put(1, 0, 10, 1, 2, Unknown, 0), read(2, 0, 10, 3, 4, 1)}, all(0, 0), "I5"},
		"one revision for two writes": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), put(2, 0, 11, 1, 2, OK, 1)}, all(1, 11), "I1: two writes"},
		"a condition that did not hold": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), conditional(put(1, 0, 11, 3, 4, OK, 2), 0)}, all(2, 11), "I5"},
		"a conflict that was none": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), conditional(put(1, 0, 11, 3, 4, Conflict, 1), 1)}, all(1, 10), "I5"},
		"a conflict": {
			[]Op{put(1, 0, 10, 1, 2, OK, 1), conditional(put(1, 0, 11, 3, 4, Conflict, 1), 0)}, all(1, 10), ""},
		"something that nobody wrote": {nil, all(1, 77), "I1"},
	} {
		h := NewHistory("g", 0, Values{})
		for _, op := range c.ops {
			h.Record(op)
		}
		violations, decided := h.Check(c.last, time.Minute)
		got := strings.Join(violations, "\n")
		if !decided || (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: violations %q, want %q", name, got, c.want)
		}
	}
}

func TestAHistoryGoesOnWhereTheLastOneEnded(t *testing.T) {
	h := NewHistory("g", 0, Values{})
	h.Record(put(1, 0, 10, 1, 2, OK, 1))
	if v, _ := h.Check(all(1, 10), time.Minute); len(v) > 0 {
		t.Fatal(v)
	}
	if v, _ := h.Check(all(0, 0), time.Minute); len(v) == 0 {
		t.Fatal("a loss between two checks was not noticed")
	}
}

func TestPlanesTellWhatMustNotHappen(t *testing.T) {
	snap := func(plane string, rev uint64, value uint32) Snapshot {
		return Snapshot{Plane: plane, Group: "alpha", At: Version{1, rev}, Endpoints: Values{value}, Routes: Values{value},
			Resources: []Resource{{"type", "service/alpha-0", Version{1, rev}.String() + ".h", []byte{byte(value)}}}}
	}
	mixed := snap("p", 1, 5)
	mixed.Routes = Values{6}
	foreign := snap("p", 1, 5)
	foreign.Resources[0].Name = "service/beta-0"
	hidden := snap("p", 1, 5)
	hidden.Resources[0].Body = []byte("..beta-0..")
	raised := snap("p", 1, 5)
	raised.At.Epoch = 2
	raised.Resources = nil
	for name, c := range map[string]struct {
		seen []Snapshot
		want string
	}{
		"forward":                    {[]Snapshot{snap("p", 1, 5), snap("p", 3, 6), snap("q", 1, 5)}, ""},
		"a lower revision":           {[]Snapshot{snap("p", 3, 6), snap("p", 1, 5)}, "I2"},
		"a lower epoch":              {[]Snapshot{raised, snap("p", 9, 5)}, "I2"},
		"two contents of a revision": {[]Snapshot{snap("p", 1, 5), snap("q", 1, 6)}, "I3"},
		"a mixture":                  {[]Snapshot{mixed}, "I3"},
		"another group's name":       {[]Snapshot{foreign}, "I7"},
		"another group's content":    {[]Snapshot{hidden}, "I7"},
	} {
		p := NewPlanes([]string{"alpha", "beta"})
		for _, s := range c.seen {
			p.Saw(s)
		}
		got := strings.Join(p.Take(), "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: violations %q, want %q", name, got, c.want)
		}
	}
}

func TestResourcesOfADataPlaneDoNotGoBack(t *testing.T) {
	p := NewPlanes([]string{"alpha", "beta"})
	// The hash is the content's.
	at := func(v, body string) Resource { return Resource{"type", "service/alpha-0", v, []byte(body)} }
	p.Received("p", "alpha", at("1.5.hx", "x"))
	p.Received("p", "alpha", at("2.1.hy", "y"))
	p.Received("q", "alpha", at("1.5.hx", "x"))
	p.Received("q", "alpha", at("1.4.hx", "x")) // the same, numbered by another server
	if v := p.Take(); len(v) > 0 {
		t.Fatal(v)
	}
	p.Received("p", "alpha", at("1.7.hz", "z"))
	p.Received("q", "alpha", at("2.1.hy", "other"))
	p.Received("q", "alpha", at("nonsense", "other"))
	if v := p.Take(); len(v) != 3 {
		t.Fatalf("violations %q, want three", v)
	}
}

func TestAContentThatIsNotThatOfTheAcknowledgedWriteIsNoticed(t *testing.T) {
	p := NewPlanes([]string{"alpha"})
	p.Saw(Snapshot{Plane: "p", Group: "alpha", At: Version{1, 4}, Endpoints: Values{0, 7}, Routes: Values{0, 7}})
	good := Op{Group: "alpha", Kind: Put, Slot: 1, Value: 7, Epoch: 1, Revision: 4}
	p.Acknowledged([]Op{good})
	if v := p.Take(); len(v) > 0 {
		t.Fatal(v)
	}
	bad := good
	bad.Value = 8
	p.Acknowledged([]Op{bad})
	if v := p.Take(); len(v) != 1 {
		t.Fatalf("violations %q, want one", v)
	}
}
