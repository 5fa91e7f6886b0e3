package state

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func base(t testing.TB) *State {
	return do(t, New(), &musterv1.Group{Id: "g"}, commit("g",
		put(service("a", "")), put(route("a1", "a", "")), put(route("a2", "a", "")), put(streamRoute("as", "a")),
		put(service("ab", "")), put(route("ab1", "ab", "")),
		put(consumer("al")), put(credential("al", "k1")), put(consumer("alice")), put(credential("alice", "k1")),
	))
}

func TestATransactionMakesOneRevision(t *testing.T) {
	s := base(t)
	g := group(t, s, "g")
	if g.Revision() != 1 || g.Meta().GetResources() != 10 || g.View().Len() != 10 {
		t.Fatalf("revision %d, %d resources", g.Revision(), g.View().Len())
	}
	e, _ := g.View().Get(key2("route/a1"))
	if e.Revision != 1 || e.Author != "alice" || e.Resource.GetRoute().GetCreateTime() != 1000 || e.Resource.GetRoute().GetUpdateTime() != 1000 {
		t.Errorf("entry %+v", e)
	}
}

func TestCommitCases(t *testing.T) {
	cases := []struct {
		name    string
		changes []*musterv1.Change
		want    string // the answer
		left    string // what is there afterwards, "" for not checked
	}{
		{"a new resource is created", []*musterv1.Change{put(service("n", ""))}, "created service/n", ""},
		{"a replaced resource is updated", []*musterv1.Change{put(service("a", "x"))}, "updated service/a", ""},
		{"the same content is unchanged", []*musterv1.Change{put(service("a", ""))}, "unchanged service/a", ""},
		{"a service takes its routes along, and only its own",
			[]*musterv1.Change{del("service/a")},
			"deleted service/a, deleted route/a1, deleted route/a2, deleted stream_route/as",
			"consumer/al consumer/alice credential/al/k1 credential/alice/k1 route/ab1 service/ab"},
		{"a consumer takes its credentials along, and only its own",
			[]*musterv1.Change{del("consumer/al")},
			"deleted consumer/al, deleted credential/al/k1", ""},
		{"routes may be listed besides their service, after it",
			[]*musterv1.Change{del("service/a"), del("route/a1")},
			"deleted service/a, deleted route/a1, deleted route/a2, deleted stream_route/as", ""},
		{"routes may be listed besides their service, before it",
			[]*musterv1.Change{del("route/a1"), del("service/a")},
			"deleted route/a1, deleted service/a, deleted route/a2, deleted stream_route/as", ""},
		{"a route that moves first stays",
			[]*musterv1.Change{put(route("a1", "ab", "")), del("service/a")},
			"updated route/a1, deleted service/a, deleted route/a2, deleted stream_route/as", ""},
		{"a route that moves afterwards stays",
			[]*musterv1.Change{del("service/a"), put(route("a1", "ab", ""))},
			"deleted service/a, updated route/a1, deleted route/a2, deleted stream_route/as", ""},
		{"a route may come before its new service",
			[]*musterv1.Change{put(route("n1", "n", "")), put(service("n", ""))},
			"created route/n1, created service/n", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := base(t)
			next, result := s.Apply(command(commit("g", c.changes...)))
			if result.Err != nil {
				t.Fatal(result.Err)
			}
			if got := results(result.Commit.GetChanges()); got != c.want {
				t.Errorf("answer\n got %s\nwant %s", got, c.want)
			}
			if got := keys(group(t, next, "g").View()); c.left != "" && got != c.left {
				t.Errorf("left\n got %s\nwant %s", got, c.left)
			}
			// A preview says the same.
			preview, err := Preview(group(t, s, "g"), commit("g", c.changes...), "alice", at(1000))
			if err != nil || results(preview.Answer.GetChanges()) != c.want {
				t.Errorf("preview: %v %s", err, results(preview.Answer.GetChanges()))
			}
			if got, want := preview.Group, group(t, next, "g"); got.Revision() != want.Revision() || keys(got.View()) != keys(want.View()) {
				t.Errorf("preview: revision %d with %s, then %d with %s", got.Revision(), keys(got.View()), want.Revision(), keys(want.View()))
			}
		})
	}
}

func TestRefusedTransactionsChangeNothing(t *testing.T) {
	s := base(t)
	expected, before := uint64(7), uint64(0)
	cases := []struct {
		name string
		cmd  *musterv1.CommitCommand
		want string
	}{
		{"unknown group", commit("x", put(service("n", ""))), `group "x" not found`},
		{"a deletion of nothing", commit("g", put(service("n", "")), del("service/zz")), `service/zz not found in group "g"`},
		{"a resource twice", commit("g", put(service("n", "")), put(service("n", "x"))), "twice"},
		{"a route without its service", commit("g", put(route("n", "zz", ""))), `service "zz" does not exist`},
		{"a stream route without its service", commit("g", put(streamRoute("n", "zz"))), `service "zz" does not exist`},
		{"a credential without its consumer", commit("g", put(credential("zz", "k"))), `consumer "zz" does not exist`},
		{"a route put under a service that goes", commit("g", del("service/a"), put(route("a9", "a", ""))), `service "a" does not exist`},
		{"an id with a slash", commit("g", put(service("a/b", ""))), "slash"},
		{"an empty id", commit("g", put(service("", ""))), "empty"},
		{"a resource without a kind", commit("g", put(&musterv1.Resource{})), "kind"},
		{"a change that says nothing", commit("g", &musterv1.Change{}), "neither"},
		{"another revision than expected", &musterv1.CommitCommand{Group: "g", ExpectedRevision: &expected}, "at revision 1, not at the expected 7"},
		{"an older revision than is there", &musterv1.CommitCommand{Group: "g", ExpectedRevision: &before}, "at revision 1, not at the expected 0"},
		{"an id with a NUL", commit("g", put(service("a\x00b", ""))), "NUL"},
		{"a username with a NUL", commit("g", put(consumer("a\x00")), put(credential("a\x00", "k"))), "NUL"},
		{"an id that is too long", commit("g", put(service(strings.Repeat("a", 1025), ""))), "too long"},
		{"a message that is too long", &musterv1.CommitCommand{Group: "g", Message: strings.Repeat("x", 1025)}, "message"},
		{"a message that a terminal obeys", &musterv1.CommitCommand{Group: "g", Message: "a\x1b[2J"}, "message"},
		{"a rollback to the future", &musterv1.CommitCommand{Group: "g", RollbackTo: 2}, "not there yet"},
		{"a rollback with changes", &musterv1.CommitCommand{Group: "g", RollbackTo: 1, Changes: []*musterv1.Change{put(service("n", ""))}}, "excludes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := fails(t, s, c.cmd)
			text := err.Error()
			var problems resource.Problems
			if errors.As(err, &problems) {
				for _, p := range problems {
					text += p.Message
				}
			}
			if !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}

func TestAllProblemsOfATransactionAreListed(t *testing.T) {
	err := fails(t, base(t), commit("g", put(route("n1", "zz", "")), put(credential("yy", "k")), put(service("a/b", "")), put(service("", ""))))
	var problems resource.Problems
	if !errors.As(err, &problems) || len(problems) != 4 {
		t.Fatalf("got %#v", err)
	}
}

func TestNothingChangedMakesNoRevision(t *testing.T) {
	s := base(t)
	next, result := s.Apply(command(commit("g", put(service("a", "")), put(route("a1", "a", "")))))
	if result.Err != nil || result.Commit.GetRevision() != 1 {
		t.Fatalf("%v", result)
	}
	if group(t, next, "g") != group(t, s, "g") {
		t.Error("the group was replaced")
	}
	next = do(t, next, commit("g"))
	if group(t, next, "g").Revision() != 1 {
		t.Error("an empty transaction made a revision")
	}
}

func TestTimesAreTheStatesNotTheCallers(t *testing.T) {
	s := base(t)
	r := service("a", "new")
	r.GetService().CreateTime, r.GetService().UpdateTime = 5, 6
	cmd := command(commit("g", put(r)))
	cmd.Time = at(3000)
	s = do(t, s, cmd)
	e, _ := group(t, s, "g").View().Get(key2("service/a"))
	if svc := e.Resource.GetService(); svc.GetCreateTime() != 1000 || svc.GetUpdateTime() != 3000 {
		t.Errorf("times %d %d", svc.GetCreateTime(), svc.GetUpdateTime())
	}
	if r.GetService().GetCreateTime() != 5 {
		t.Error("the caller's message was changed")
	}
	// Different times alone are no change.
	same := proto.CloneOf(e.Resource)
	same.GetService().UpdateTime = 9
	s = do(t, s, commit("g", put(same)))
	if group(t, s, "g").Revision() != 2 {
		t.Error("times alone made a revision")
	}
}

func TestARepeatedRequestGetsTheFirstAnswer(t *testing.T) {
	s := base(t)
	cmd := command(commit("g", put(service("n", ""))))
	cmd.RequestId = "r"
	s, first := s.Apply(cmd)
	s = do(t, s, commit("g", del("service/n")))
	again, second := s.Apply(cmd)
	if again != s || !second.Replayed || !proto.Equal(first.Commit, second.Commit) {
		t.Errorf("got %v", second)
	}
	// Another caller's request of the same id is another request.
	other := proto.CloneOf(cmd)
	other.Author = "bob"
	if _, result := s.Apply(other); result.Replayed {
		t.Error("bob got alice's answer")
	}
	// So is the same caller's, about another group.
	s = do(t, s, &musterv1.Group{Id: "h"})
	other = command(commit("h", put(service("n", ""))))
	other.RequestId = "r"
	if _, result := s.Apply(other); result.Replayed {
		t.Error("group h got group g's answer")
	}
}

func TestAFailedRequestIsNotRemembered(t *testing.T) {
	s := base(t)
	cmd := command(commit("g", put(route("n", "late", ""))))
	cmd.RequestId = "r"
	fails(t, s, cmd)
	s = do(t, s, commit("g", put(service("late", ""))))
	if _, result := s.Apply(cmd); result.Err != nil || result.Replayed {
		t.Errorf("got %v", result)
	}
}

func TestTheMemoryOfRequestsIsBounded(t *testing.T) {
	s := New()
	for i := range maxRequests + 10 {
		cmd := command(&musterv1.RaiseEpochCommand{})
		cmd.RequestId = string(rune('a'+i%26)) + strings.Repeat("x", i%3) + itoa(i)
		s = do(t, s, cmd)
	}
	if n := s.requests.byKey.Len(); n != maxRequests || s.requests.bySeq.Len() != n {
		t.Errorf("%d requests are remembered", n)
	}
	// Large answers are forgotten sooner.
	s = do(t, New(), &musterv1.Group{Id: "g"})
	for i := range 40 {
		var changes []*musterv1.Change
		for j := range 400 {
			changes = append(changes, put(service(strings.Repeat("s", 700)+itoa(j), itoa(i))))
		}
		cmd := command(commit("g", changes...))
		cmd.RequestId = itoa(i)
		s = do(t, s, cmd)
	}
	if s.requests.bytes > maxRequestsBytes || s.requests.byKey.Len() >= 40 || s.requests.byKey.Len() == 0 {
		t.Errorf("%d bytes of %d requests are remembered", s.requests.bytes, s.requests.byKey.Len())
	}
}

func TestAPutIsNeverSwallowedByADeletionBesideIt(t *testing.T) {
	s := do(t, New(), &musterv1.Group{Id: "g"})
	s = do(t, s, commit("g", put(service("a", "")), put(consumer("al")), put(route("old", "a", ""))))
	for name, changes := range map[string][]*musterv1.Change{
		"a new route, then its service":        {put(route("r", "a", "")), del("service/a")},
		"a kept route, then its service":       {put(route("old", "a", "x")), del("service/a")},
		"the service, then a new route":        {del("service/a"), put(route("r", "a", ""))},
		"a new credential, then its consumer":  {put(credential("al", "k")), del("consumer/al")},
		"a new service with a route, and away": {put(service("b", "")), put(route("r", "b", "")), del("service/a"), put(route("old", "a", "y"))},
	} {
		_, result := s.Apply(command(commit("g", changes...)))
		var problems resource.Problems
		if !errors.As(result.Err, &problems) || problems[0].Code != resource.CodeReference || problems[0].Path == "" {
			t.Errorf("%s: got %v", name, result.Err)
		}
	}
	// What moves to another service first is not the old one's any more.
	s = do(t, s, commit("g", put(service("b", "")), put(route("old", "b", "")), del("service/a")))
	if g := group(t, s, "g"); g.View().Len() != 3 {
		t.Errorf("%d resources", g.View().Len())
	}
}

func ssl(id, kind string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: id, Type: kind}}}
}

func withClientCert(id, cert string) *musterv1.Resource {
	r := service(id, "")
	r.GetService().Upstream = &musterv1.Upstream{Tls: &musterv1.UpstreamTls{ClientCertId: cert}}
	return r
}

// The proposer of each transaction saw a group in which it was right; what comes
// first is not known to it.
func TestAClientCertificateStaysAsLongAsSomethingRefersToIt(t *testing.T) {
	s := do(t, New(), &musterv1.Group{Id: "g"}, commit("g", put(ssl("c", "client")), put(ssl("cc", "client")), put(ssl("srv", "server"))))
	refused := func(s *State, code string, changes ...*musterv1.Change) {
		t.Helper()
		_, result := s.Apply(command(commit("g", changes...)))
		var problems resource.Problems
		if !errors.As(result.Err, &problems) || len(problems) != 1 || problems[0].Code != code || problems[0].Path != "upstream.tls.client_cert_id" {
			t.Errorf("got %v", result.Err)
		}
	}
	refused(s, resource.CodeReference, put(withClientCert("a", "none")))
	refused(s, resource.CodeReference, put(withClientCert("a", "srv")))
	refused(s, resource.CodeReference, put(withClientCert("a", "c")), del("ssl/c"))

	s = do(t, s, commit("g", put(withClientCert("a", "c"))))
	restored, err := Restore(s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{s, restored} {
		refused(s, resource.CodeReferenced, del("ssl/c"))
		refused(s, resource.CodeReferenced, put(ssl("c", "server")))
		do(t, s, commit("g", del("ssl/cc")))                                             // another one, of which `c` is a prefix
		do(t, s, commit("g", del("ssl/c"), del("service/a")))                            // together
		do(t, s, commit("g", del("ssl/c"), put(withClientCert("a", "cc"))))              // moved on
		do(t, s, commit("g", put(withClientCert("a", "cc"))), commit("g", del("ssl/c"))) // before
	}
	// Back to where it is referred to, and forth to where it is not there.
	s = do(t, s, commit("g", put(service("a", ""))), commit("g", del("ssl/c")), &musterv1.CommitCommand{Group: "g", RollbackTo: 2})
	refused(s, resource.CodeReferenced, del("ssl/c"))
}

func TestTheRequestsOfADeletedGroupWeighNothing(t *testing.T) {
	s := do(t, New(), &musterv1.Group{Id: "g"}, &musterv1.Group{Id: "h"})
	for i, change := range []*musterv1.Change{put(service("a", "")), put(service("b", "")), put(service("c", ""))} {
		cmd := command(commit("g", change))
		cmd.RequestId = fmt.Sprint(i)
		s, _ = s.Apply(cmd)
	}
	if s.requests.bytes == 0 {
		t.Fatal("nothing is remembered")
	}
	s = do(t, s, &musterv1.DeleteGroupCommand{Id: "g", Force: true})
	if s.requests.bytes != 0 || s.requests.byKey.Len() != 0 || s.requests.bySeq.Len() != 0 {
		t.Errorf("%d bytes in %d and %d requests", s.requests.bytes, s.requests.byKey.Len(), s.requests.bySeq.Len())
	}
}

func TestATransactionHoldsOnlyOnTheContentThatItWasJudgedOn(t *testing.T) {
	s := do(t, New(), &musterv1.Group{Id: "g", Name: "g"})
	marked := func(mark, on, revision uint64, desc string) *musterv1.CommitCommand {
		c := commit("g", put(service("a", desc)))
		c.Mark, c.JudgedOn, c.ExpectedRevision = mark, &on, &revision
		return c
	}
	s = do(t, s, marked(11, 0, 0, "one"))
	// Two servers each took a revision of their own for the second one.
	left, right := do(t, s, marked(21, 11, 1, "left")), do(t, s, marked(22, 11, 1, "right"))
	next := marked(31, 21, 2, "on the left")
	do(t, left, next)
	var conflict *RevisionConflict
	if err := fails(t, right, next); !errors.As(err, &conflict) || conflict.Actual != 2 {
		t.Fatalf("err = %v, want a conflict at revision 2", err)
	}
	// A transaction that changes nothing leaves the mark.
	if g := group(t, do(t, left, marked(41, 21, 2, "left")), "g"); g.Mark() != 21 || g.Revision() != 2 {
		t.Fatalf("mark %d at revision %d, want 21 at 2", g.Mark(), g.Revision())
	}
	// A server that comes back from a snapshot decides alike.
	restored, err := restore(records(t, left))
	if err != nil {
		t.Fatal(err)
	}
	do(t, restored, next)
	fails(t, restored, marked(31, 22, 2, "on the right"))
	// A group made again under the id is none of those.
	again := do(t, left, &musterv1.DeleteGroupCommand{Id: "g", Force: true}, &musterv1.Group{Id: "g", Name: "g"})
	if g := group(t, again, "g"); g.Mark() != 0 || g.Revision() != 3 {
		t.Fatalf("mark %d at revision %d, want 0 at 3", g.Mark(), g.Revision())
	}
}
