package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// groupList is what a relay remembers of its upstream between starts.
type groupList struct {
	// Foreign: the upstream is not muster.
	Foreign bool        `json:"foreign,omitempty"`
	Groups  []listGroup `json:"groups"`
}

type listGroup struct {
	ID     string            `json:"id"`
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Created is zero where the upstream does not tell.
	Created time.Time `json:"created,omitzero"`
	// GRPC: it has or had data planes that are gRPC's own xDS clients.
	GRPC bool `json:"grpc,omitempty"`
}

// listFile is where the list is, in the data directory.
const listFile = "groups.json"

func (l groupList) messages() []*musterv1.RelayedGroup {
	out := make([]*musterv1.RelayedGroup, len(l.Groups))
	for i, g := range l.Groups {
		out[i] = &musterv1.RelayedGroup{Id: g.ID, Name: g.Name, Labels: g.Labels}
		if !g.Created.IsZero() {
			out[i].CreatedAt = timestamppb.New(g.Created)
		}
	}
	return out
}

func listOf(groups []*musterv1.RelayedGroup) groupList {
	var l groupList
	for _, g := range groups {
		of := listGroup{ID: g.GetId(), Name: g.GetName(), Labels: g.GetLabels()}
		if g.GetCreatedAt() != nil {
			of.Created = g.GetCreatedAt().AsTime()
		}
		l.Groups = append(l.Groups, of)
	}
	return l
}

// readList returns the list on disk; ok is false when there is none that can be read.
func readList(dir string) (l groupList, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(dir, listFile))
	if errors.Is(err, fs.ErrNotExist) {
		return l, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err != nil {
		return groupList{}, false, fmt.Errorf("the list of groups on disk is refused: %w", err)
	}
	return l, true, nil
}

// writeList replaces the list on disk.
func writeList(dir string, l groupList) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, listFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), filepath.Join(dir, listFile))
}
