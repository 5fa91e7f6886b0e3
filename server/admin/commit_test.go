package admin

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func TestATransactionIsOneRevisionWithAuthorAndMessage(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	resp, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Message: "first", Changes: []*musterv1.Change{
		put(serviceOf("pay", "10.0.0.1")), put(routeOf("r", "pay", "/pay")),
	}})
	if err != nil {
		t.Fatal(err, violationsIn(err))
	}
	if resp.GetRevision() != 1 || len(resp.GetChanges()) != 2 || resp.GetChanges()[0].GetResult() != musterv1.ChangeResult_CHANGE_RESULT_CREATED {
		t.Fatalf("response = %v", resp)
	}
	revs, err := h.admin.ListRevisions(h.as(viewerKey), &musterv1.ListRevisionsRequest{Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	got := revs.GetRevisions()[0]
	if got.GetAuthor() != "ed" || got.GetMessage() != "first" || got.GetCommittedAt() == nil || len(got.GetChanges()) != 2 || got.GetChanges()[0].GetAfter() != nil {
		t.Fatalf("revision = %v", got)
	}
}

func TestEveryProblemOfATransactionIsReportedByItsField(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	bad := serviceOf("pay", "10.0.0.1")
	bad.GetService().Upstream.Nodes[0].Port = 70000
	bad.GetService().Upstream.Type = "fastest"
	bad.GetService().Plugins = map[string]*structpb.Struct{"corz": {}}
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Message: strings.Repeat("m", 10), Changes: []*musterv1.Change{
		put(bad), put(routeOf("r", "pay", "no-slash", "/ok", "also-not")),
	}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	got := violationsIn(err)
	for _, field := range []string{
		"changes[0].put.service.upstream.nodes[0].port", "changes[0].put.service.upstream.type",
		"changes[0].put.service.plugins.corz", "changes[1].put.route.uris[0]", "changes[1].put.route.uris[2]",
	} {
		if got[field].GetDescription() == "" || got[field].GetReason() == "" {
			t.Errorf("no violation of %s in %v", field, got)
		}
	}
	if hint := got["changes[0].put.service.plugins.corz"].GetLocalizedMessage().GetMessage(); !strings.Contains(hint, "cors") {
		t.Errorf("hint = %q", hint)
	}
	if h.store.State().Index() != 1 {
		t.Error("something was proposed")
	}
}

func TestTheShapeOfATransactionIsChecked(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	twice := []*musterv1.Change{put(serviceOf("a", "10.0.0.1")), del(musterv1.Kind_KIND_SERVICE, "a")}
	for name, c := range map[string]struct {
		req   *musterv1.CommitRequest
		field string
	}{
		"no action":    {&musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{{}}}, "changes[0]"},
		"no kind":      {&musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(&musterv1.Resource{})}}, "changes[0].put"},
		"no id":        {&musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{del(musterv1.Kind_KIND_ROUTE, "")}}, "changes[0].delete"},
		"twice":        {&musterv1.CommitRequest{Group: "g", Changes: twice}, "changes[1]"},
		"long message": {&musterv1.CommitRequest{Group: "g", Message: strings.Repeat("m", 2000)}, "message"},
		"no group":     {&musterv1.CommitRequest{}, "group"},
		"too many":     {&musterv1.CommitRequest{Group: "g", Changes: make([]*musterv1.Change, maxChanges+1)}, "changes"},
	} {
		t.Run(name, func(t *testing.T) {
			for i, ch := range c.req.Changes {
				if ch == nil {
					c.req.Changes[i] = &musterv1.Change{}
				}
			}
			_, err := h.admin.Commit(h.as(editorKey), c.req)
			wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
			if violationsIn(err)[c.field] == nil {
				t.Fatalf("no violation of %s in %v", c.field, violationsIn(err))
			}
		})
	}
}

func TestMoreProblemsThanAnAnswerCanCarryAreCounted(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	req := &musterv1.CommitRequest{Group: "g"}
	for i := range 2 * maxViolations {
		req.Changes = append(req.Changes, put(routeOf(fmt.Sprintf("r%d", i), "none", "no-slash")))
	}
	_, err := h.admin.Commit(h.as(editorKey), req)
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if n := len(violationsIn(err)); n != maxViolations+1 {
		t.Fatalf("%d violations, want %d and a count of the rest", n, maxViolations)
	}
}

func TestADanglingReferenceIsRefused(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(routeOf("r", "nope", "/x"))}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	v := violationsIn(err)["changes[0].put.route.service_id"]
	if v.GetReason() != resource.CodeReference {
		t.Fatalf("violations = %v", violationsIn(err))
	}
}

func TestWhatDoesNotCompileIsNotProposed(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	s := serviceOf("pay", "10.0.0.1")
	s.GetService().Desc = uncompilable
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(serviceOf("ok", "10.0.0.1")), put(s)}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	v := violationsIn(err)["changes[1].put.service.upstream"]
	if v.GetLocalizedMessage().GetMessage() != "leave it out" {
		t.Fatalf("violations = %v", violationsIn(err))
	}
	if g, _ := h.store.State().Group("g"); g.Revision() != 0 {
		t.Fatal("it was committed")
	}
}

func TestATransactionHoldsOnlyAtTheRevisionThatItWasJudgedAt(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	meanwhile := func(changes ...*musterv1.Change) {
		h.store.mu.Lock()
		defer h.store.mu.Unlock()
		h.store.before = func(f *fakeStore) {
			f.commit(&musterv1.Command{Author: "other", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Changes: changes}}})
		}
	}
	// Another change that leaves it as good as it was: it is judged again, and passes.
	meanwhile(put(serviceOf("shop", "10.0.0.1")))
	if resp := h.commit(put(serviceOf("pay", "10.0.0.2"))); resp.GetRevision() != 3 {
		t.Fatalf("revision = %d, want 3", resp.GetRevision())
	}
	// One beside which it does not compile: it is judged again, and refused.
	other, mine := serviceOf("shop", "10.0.0.1"), serviceOf("pay", "10.0.0.3")
	other.GetService().Desc, mine.GetService().Desc = jealous, jealous
	meanwhile(put(other))
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(mine)}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	// A rollback is a transaction like any other.
	meanwhile(put(serviceOf("late", "10.0.0.1")))
	back, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	g, _ := h.store.State().Group("g")
	if back.GetRevision() != g.Revision() || g.View().Len() != 1 {
		t.Fatalf("rolled back to %d resources at %d", g.View().Len(), back.GetRevision())
	}
}

func TestManyWritersOfOneGroupAllGetThrough(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	const writers, each = 16, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(serviceOf(fmt.Sprintf("s-%d-%d", w, i), "10.0.0.1"))}})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if g, _ := h.store.State().Group("g"); g.Revision() != writers*each || g.View().Len() != writers*each {
		t.Fatalf("revision %d with %d resources, want %d", g.Revision(), g.View().Len(), writers*each)
	}
}

func TestALostUpdateIsRefusedAndSaysWhoCameFirst(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	req := &musterv1.CommitRequest{Group: "g", ExpectedRevision: proto.Uint64(0), Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.2"))}}
	_, err := h.admin.Commit(h.as(adminKey), req)
	wantCode(t, err, codes.Aborted, ReasonRevisionConflict)
	if m := infoIn(err); m["actual"] != "1" || m["expected"] != "0" || m["author"] != "ed" {
		t.Fatalf("metadata = %v", m)
	}
	req.ExpectedRevision = proto.Uint64(1)
	if _, err := h.admin.Commit(h.as(adminKey), req); err != nil {
		t.Fatal(err)
	}
}

func TestARepeatedRequestGetsTheFirstAnswerEvenIfItWouldNotPassNow(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	req := &musterv1.CommitRequest{Group: "g", RequestId: "once", ExpectedRevision: proto.Uint64(0), Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.1"))}}
	first, err := h.admin.Commit(h.as(editorKey), req)
	if err != nil {
		t.Fatal(err)
	}
	h.commit(del(musterv1.Kind_KIND_SERVICE, "pay"))
	again, err := h.admin.Commit(h.as(editorKey), req)
	if err != nil || !proto.Equal(first, again) {
		t.Fatalf("again = %v, %v; want %v", again, err, first)
	}
	if g, _ := h.store.State().Group("g"); g.Revision() != 2 {
		t.Fatalf("revision = %d, want 2", g.Revision())
	}
}

func TestADryRunReturnsTheDiffAndCommitsNothing(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")), put(routeOf("r", "pay", "/pay")))
	resp, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", DryRun: true, RequestId: "dry", Changes: []*musterv1.Change{del(musterv1.Kind_KIND_SERVICE, "pay")}})
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetRevision() != 1 || len(resp.GetChanges()) != 2 {
		t.Fatalf("response = %v, want revision 1 and the cascade", resp)
	}
	for _, c := range resp.GetChanges() {
		if c.GetResult() != musterv1.ChangeResult_CHANGE_RESULT_DELETED || c.GetBefore() == nil || c.GetAfter() != nil {
			t.Fatalf("change = %v", c)
		}
	}
	if g, _ := h.store.State().Group("g"); g.Revision() != 1 || g.View().Len() != 2 {
		t.Fatal("the dry run changed something")
	}
}

func TestAnUnchangedTransactionMakesNoRevision(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	resp := h.commit(put(serviceOf("pay", "10.0.0.1")))
	if resp.GetRevision() != 1 || resp.GetChanges()[0].GetResult() != musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED {
		t.Fatalf("response = %v", resp)
	}
}

func keyOfAnn(key string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{
		Id: "k", Consumer: "ann", Name: "k",
		Plugins: map[string]*structpb.Struct{"key-auth": {Fields: map[string]*structpb.Value{"key": structpb.NewStringValue(key)}}},
	}}}
}

func consumerOf(name string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: name}}}
}

func secretOf(r *musterv1.Resource) string {
	return r.GetCredential().GetPlugins()["key-auth"].GetFields()["key"].GetStringValue()
}

func TestAnObjectReadWithMaskedSecretsCanBeEditedAndWrittenBack(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(consumerOf("ann")), put(keyOfAnn("very-secret-key")))
	key := resource.CredentialKey("ann", "k").Proto()
	read, err := h.admin.GetResource(h.as(viewerKey), &musterv1.GetResourceRequest{Group: "g", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	edited := read.GetResource().GetResource()
	if secretOf(edited) != mask {
		t.Fatalf("a viewer reads %q", secretOf(edited))
	}
	edited.GetCredential().Desc = "edited"
	h.commit(put(edited))
	g, _ := h.store.State().Group("g")
	e, _ := g.View().Get(resource.KeyFromProto(key))
	if secretOf(e.Resource) != "very-secret-key" || e.Resource.GetCredential().GetDesc() != "edited" {
		t.Fatalf("stored = %v", e.Resource)
	}
}

func TestAMaskWithoutAStoredSecretIsRefused(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(consumerOf("ann")), put(keyOfAnn(mask))}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if violationsIn(err)["changes[1].put.credential.plugins.key-auth.key"] == nil {
		t.Fatalf("violations = %v", violationsIn(err))
	}
}

// A secret that is kept is read before the transaction and written with it: if
// somebody replaces it in between, the old one must not come back.
func TestAKeptSecretIsTheNewestOne(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(consumerOf("ann")), put(keyOfAnn("old-secret-key")))
	h.store.mu.Lock()
	h.store.before = func(f *fakeStore) {
		f.commit(&musterv1.Command{Author: "other", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Changes: []*musterv1.Change{put(keyOfAnn("new-secret-key"))}}}})
	}
	h.store.mu.Unlock()
	masked := keyOfAnn(mask)
	masked.GetCredential().Desc = "edited"
	if resp := h.commit(put(masked)); resp.GetRevision() != 3 {
		t.Fatalf("revision = %d, want 3", resp.GetRevision())
	}
	g, _ := h.store.State().Group("g")
	e, _ := g.View().Get(resource.CredentialKey("ann", "k"))
	if secretOf(e.Resource) != "new-secret-key" || e.Resource.GetCredential().GetDesc() != "edited" {
		t.Fatalf("stored = %v", e.Resource)
	}
}

func TestSecretsAreRevealedToThoseWhoMayWriteThemOnly(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(consumerOf("ann")), put(keyOfAnn("very-secret-key")))
	req := &musterv1.ListResourcesRequest{Group: "g", Kinds: []musterv1.Kind{musterv1.Kind_KIND_CREDENTIAL}, RevealSecrets: true}
	_, err := h.admin.ListResources(h.as(viewerKey), req)
	wantCode(t, err, codes.PermissionDenied, ReasonSecretsNotReadable)
	resp, err := h.admin.ListResources(h.as(editorKey), req)
	if err != nil || secretOf(resp.GetResources()[0].GetResource()) != "very-secret-key" {
		t.Fatalf("resources = %v, %v", resp, err)
	}
	req.RevealSecrets = false
	resp, err = h.admin.ListResources(h.as(editorKey), req)
	if err != nil || secretOf(resp.GetResources()[0].GetResource()) != mask {
		t.Fatalf("resources = %v, %v", resp, err)
	}
}

func TestNoAnswerOfADiffOrDryRunHoldsASecret(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(consumerOf("ann")), put(keyOfAnn("canary-one")))
	h.commit(put(keyOfAnn("canary-two")))
	dry, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", DryRun: true, Changes: []*musterv1.Change{put(keyOfAnn("canary-three"))}})
	if err != nil {
		t.Fatal(err)
	}
	diff, err := h.admin.DiffRevisions(h.as(adminKey), &musterv1.DiffRevisionsRequest{Group: "g", From: 1, To: 2})
	if err != nil {
		t.Fatal(err)
	}
	roll, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]proto.Message{"dry run": dry, "diff": diff, "rollback": roll} {
		text := fmt.Sprint(m)
		if strings.Contains(text, "canary") {
			t.Errorf("the %s holds a secret: %s", name, text)
		}
		if !strings.Contains(text, maskChanged) {
			t.Errorf("the %s does not say that the secret changed: %s", name, text)
		}
	}
}

func TestALeaderAsksTheMajorityOnceForAWriteThatPasses(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	reads := h.store.reads
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	if h.store.reads != reads {
		t.Fatalf("a write asked for the read index %d times", h.store.reads-reads)
	}
}

// A leader that has been replaced and does not know it must not refuse anything
// by its old state.
func TestARefusalIsByTheNewestState(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.mu.Lock()
	// What ReadIndex finds out about: the new leader has made the service.
	h.store.onRead = func(f *fakeStore) {
		f.commit(&musterv1.Command{Author: "other", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.1"))}}}})
	}
	h.store.mu.Unlock()
	if resp := h.commit(put(routeOf("r", "pay", "/pay"))); resp.GetRevision() != 2 {
		t.Fatalf("revision = %d, want 2", resp.GetRevision())
	}
}

// What a retry holds was judged the first time: it gets its answer although the
// group, or the time, would judge it differently now.
func TestARetryIsNotJudgedAgain(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(consumerOf("ann")), put(keyOfAnn("a-secret-key")))
	edited := keyOfAnn(mask)
	edited.GetCredential().Desc = "edited"
	req := &musterv1.CommitRequest{Group: "g", RequestId: "once", Changes: []*musterv1.Change{put(edited)}}
	first, err := h.admin.Commit(h.as(editorKey), req)
	if err != nil {
		t.Fatal(err)
	}
	// The secret that the mask stood for is gone.
	h.commit(del(musterv1.Kind_KIND_CREDENTIAL, "ann/k"))
	again, err := h.admin.Commit(h.as(editorKey), req)
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Fatalf("the retry got %v, %v; the first %v", again, err, first)
	}
}

// Three servers that write to one group are in each other's way at every try.
func TestAWriteWithoutAConditionMeetsNoConflictHoweverOftenOthersComeFirst(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	others := 0
	var first func(*fakeStore)
	first = func(f *fakeStore) {
		if others++; others > 200 {
			return
		}
		res := f.commit(&musterv1.Command{Author: "other", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{
			Group: "g", Changes: []*musterv1.Change{put(serviceOf("other", fmt.Sprintf("10.0.0.%d", others)))},
		}}})
		if res.Err != nil {
			t.Error(res.Err)
		}
		f.mu.Lock()
		f.before = first
		f.mu.Unlock()
	}
	h.store.mu.Lock()
	h.store.before = first
	h.store.mu.Unlock()
	if resp := h.commit(put(serviceOf("mine", "10.0.1.1"))); resp.GetRevision() != 201 {
		t.Fatalf("revision = %d after 200 of others, want 201", resp.GetRevision())
	}
}

func TestADryRunIsByTheNewestState(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	h.store.mu.Lock()
	h.store.onRead = func(f *fakeStore) {
		f.commit(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.2"))}}}})
	}
	h.store.mu.Unlock()
	resp, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", DryRun: true, Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.2"))}})
	if err != nil || resp.GetRevision() != 2 || resp.GetChanges()[0].GetResult() != musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED {
		t.Fatalf("got %v, %v", resp, err)
	}
}

func TestARollbackHoldsOnlyAtTheRevisionThatItExpects(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	h.commit(put(serviceOf("pay", "10.0.0.2")))
	h.commit(put(serviceOf("pay", "10.0.0.3")))
	_, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1, ExpectedRevision: proto.Uint64(2)})
	wantCode(t, err, codes.Aborted, ReasonRevisionConflict)
	if _, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1, ExpectedRevision: proto.Uint64(3)}); err != nil {
		t.Fatal(err)
	}
}
