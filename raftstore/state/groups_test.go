package state

import (
	"errors"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func TestANewGroupHasItsDefaults(t *testing.T) {
	g := group(t, do(t, New(), &musterv1.Group{Name: "prod"}), "prod").Meta()
	if g.GetId() != "prod" || g.GetType() != TypeGateway || g.GetControlPlaneKeyPrefix() != "/gateway_groups/prod" ||
		g.GetHistoryLimit() != 200 || g.GetCreatedAt().GetSeconds() != 1000 || g.GetRevision() != 0 || g.GetEpoch() != 1 {
		t.Errorf("group %v", g)
	}
}

func TestGroupsThatCouldBeTakenForEachOtherAreRefused(t *testing.T) {
	s := do(t, New(),
		&musterv1.Group{Id: "a", Name: "alpha"},
		&musterv1.Group{Id: "b", ControlPlaneKeyPrefix: "/x/y"},
		&musterv1.Group{Id: "c", ControlPlaneKeyPrefix: "/gateway_groups/d"},
	)
	for name, g := range map[string]*musterv1.Group{
		"the same id":                           {Id: "a"},
		"the same name":                         {Id: "n", Name: "alpha"},
		"an id that is another's name":          {Id: "alpha"},
		"a name that is another's id":           {Id: "n", Name: "b"},
		"the same prefix":                       {Id: "n", ControlPlaneKeyPrefix: "/x/y"},
		"a prefix inside another's":             {Id: "n", ControlPlaneKeyPrefix: "/x/y/z"},
		"a prefix deep inside another's":        {Id: "n", ControlPlaneKeyPrefix: "/x/y/service/a"},
		"a prefix around another's":             {Id: "n", ControlPlaneKeyPrefix: "/x"},
		"a default prefix that is another's":    {Id: "d"},
		"a prefix around the default ones":      {Id: "n", ControlPlaneKeyPrefix: "/gateway_groups"},
		"a prefix inside another's default one": {Id: "n", ControlPlaneKeyPrefix: "/gateway_groups/a/route"},
		"a prefix that climbs":                  {Id: "n", ControlPlaneKeyPrefix: "/x/../gateway_groups/a"},
		"a prefix of another spelling":          {Id: "n", ControlPlaneKeyPrefix: "/x/y/"},
		"a prefix with an empty segment":        {Id: "n", ControlPlaneKeyPrefix: "//x/y"},
		"a prefix with a dot segment":           {Id: "n", ControlPlaneKeyPrefix: "/x/./y"},
		"a prefix without a slash":              {Id: "n", ControlPlaneKeyPrefix: "n"},
		"the root as prefix":                    {Id: "n", ControlPlaneKeyPrefix: "/"},
		"a prefix with a NUL":                   {Id: "n", ControlPlaneKeyPrefix: "/x\x00"},
		"an id with a slash":                    {Id: "a/service"},
		"an id that climbs":                     {Id: ".."},
		"an id that is too long":                {Id: strings.Repeat("x", 65)},
		"neither id nor name":                   {},
		"a type that does not exist":            {Id: "n", Type: "kong"},
		"a name with a control character":       {Id: "n", Name: "a\nb"},
		"a name that a terminal obeys":          {Id: "n", Name: "a\u009b2J"},
		"a description that a terminal obeys":   {Id: "n", Description: "a\x1b[2J"},
		"a label that a terminal obeys":         {Id: "n", Labels: map[string]string{"k": "\x1b[2J"}},
		"a label's key that a terminal obeys":   {Id: "n", Labels: map[string]string{"\x1b[2J": "v"}},
		"an image tag that a terminal obeys":    {Id: "n", ImageTag: "\x1b[2J"},
		"more history than is allowed":          {Id: "n", HistoryLimit: 10001},
		"a label without a key":                 {Id: "n", Labels: map[string]string{"": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := fails(t, s, g)
			if !errors.Is(err, ErrExists) && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
	// What only looks alike is allowed.
	do(t, s,
		&musterv1.Group{Id: "n", ControlPlaneKeyPrefix: "/x/yy"},
		&musterv1.Group{Id: "A"},
		&musterv1.Group{Id: "m", ControlPlaneKeyPrefix: "/X/y", Type: TypeIngressController},
	)
}

func TestUpdateReplacesWhatMayChange(t *testing.T) {
	s := do(t, base(t), &musterv1.Group{Id: "other", Name: "taken"})
	s = do(t, s, update(&musterv1.Group{Id: "g", Name: "new", Description: "d", ImageTag: "1.2", Labels: map[string]string{"k": "v"}}))
	g := group(t, s, "new")
	m := g.Meta()
	if g.ID() != "g" || m.GetDescription() != "d" || m.GetImageTag() != "1.2" || m.GetLabels()["k"] != "v" || m.GetUpdatedAt().GetSeconds() != 2000 {
		t.Errorf("group %v", m)
	}
	if g.Revision() != 1 || g.View().Len() != 10 {
		t.Error("the update touched the resources")
	}
	for name, bad := range map[string]*musterv1.Group{
		"type is fixed":     {Id: "g", Name: "new", Type: TypeIngressController},
		"prefix is fixed":   {Id: "g", Name: "new", ControlPlaneKeyPrefix: "/elsewhere"},
		"the name is taken": {Id: "g", Name: "taken"},
		"the name is an id": {Id: "g", Name: "other"},
		"no such group":     {Id: "nope", Name: "x"},
	} {
		t.Run(name, func(t *testing.T) { fails(t, s, update(bad)) })
	}
	// The old name is free again.
	do(t, s, &musterv1.Group{Id: "h", Name: "g2"}, update(&musterv1.Group{Id: "h", Name: "h"}))
}

func TestAGroupWithResourcesIsDeletedOnlyByForce(t *testing.T) {
	s := base(t)
	if err := fails(t, s, &musterv1.DeleteGroupCommand{Id: "g"}); !errors.Is(err, ErrGroupNotEmpty) {
		t.Errorf("got %v", err)
	}
	s = do(t, s, &musterv1.DeleteGroupCommand{Id: "g", Force: true})
	if _, found := s.Group("g"); found {
		t.Error("it is still there")
	}
	if err := fails(t, s, &musterv1.DeleteGroupCommand{Id: "g"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestAGroupMadeAgainGoesOnAfterTheOldOnesRevision(t *testing.T) {
	s := base(t)
	cmd := command(commit("g", put(service("n", ""))))
	cmd.RequestId = "r"
	s = do(t, s, cmd, &musterv1.DeleteGroupCommand{Id: "g", Force: true}, &musterv1.Group{Id: "g"})
	g := group(t, s, "g")
	if g.Revision() != 3 || g.View().Len() != 0 {
		t.Fatalf("revision %d with %d resources", g.Revision(), g.View().Len())
	}
	if _, ok := g.At(2); ok {
		t.Error("the new group shows the old one's revision 2")
	}
	s, result := s.Apply(cmd)
	if result.Replayed || result.Commit.GetRevision() != 4 {
		t.Errorf("a request to the old group was taken for one to the new: %v", result)
	}
	if changes, ok := group(t, s, "g").Changes(3, 4); !ok || len(changes) != 1 {
		t.Error("no changes from the beginning")
	}
}
