package dataplane

import (
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// chunkBytes is about the size of a frame of resources in a base file.
const chunkBytes = 1 << 20

// cacheRecord is a change of the configuration as a journal holds it: what
// changed, per type, as the responses of an upstream would say it.
type cacheRecord struct {
	Epoch, Revision uint64
	Changes         []*discoveryv3.DeltaDiscoveryResponse
}

// cacheEnd is the last frame of a base file.
type cacheEnd struct {
	Resources int `json:"resources"`
}

// WriteSnapshot writes a state in the format of the cache, for a second home of
// the last known good configuration. With a key (at least 16 bytes) it is
// encrypted; keys and certificates are in it, so without one it must be kept secret.
func WriteSnapshot(w io.Writer, group string, s *State, key []byte) error {
	if len(key) > 0 && len(key) < minCacheKey {
		return ErrCacheKey
	}
	aead, err := cacheAEAD(key)
	if err != nil {
		return err
	}
	_, err = writeBase(w, cacheHeader{Kind: "base", Group: group, Epoch: s.epoch, Revision: s.revision}, s, aead)
	return err
}

// ReadSnapshot reads what WriteSnapshot wrote. It fails when the snapshot is
// damaged, incomplete, of another group, or encrypted with another key.
func ReadSnapshot(r io.Reader, group string, key []byte) (*State, error) {
	aead, err := cacheAEAD(key)
	if err != nil {
		return nil, err
	}
	s, _, err := readBase(r, group, aead)
	if err != nil {
		return nil, fmt.Errorf("snapshot of group %q refused: %w", group, err)
	}
	return s, nil
}

// writeBase writes a whole state and returns the number of bytes.
func writeBase(w io.Writer, h cacheHeader, s *State, aead cipher.AEAD) (int, error) {
	fw, err := newFrameWriter(w, h, aead)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, typeURL := range s.Types() {
		chunk := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL}
		size := 0
		flush := func() error {
			if len(chunk.Resources) == 0 {
				return nil
			}
			payload, err := proto.Marshal(chunk)
			if err != nil {
				return err
			}
			chunk.Resources, size = chunk.Resources[:0], 0
			return fw.write(payload)
		}
		for r := range s.All(typeURL) {
			chunk.Resources = append(chunk.Resources, wireResource(r))
			size += len(r.Body.GetValue())
			total++
			if size >= chunkBytes {
				if err := flush(); err != nil {
					return fw.n, err
				}
			}
		}
		if err := flush(); err != nil {
			return fw.n, err
		}
	}
	end, err := json.Marshal(cacheEnd{Resources: total})
	if err != nil {
		return fw.n, err
	}
	return fw.n, fw.write(end)
}

// readBase reads a whole state.
func readBase(r io.Reader, group string, aead cipher.AEAD) (*State, cacheHeader, error) {
	fr, h, err := newFrameReader(r, group, aead)
	if err != nil {
		return nil, h, err
	}
	if h.Kind != "base" {
		return nil, h, errNotCache
	}
	s := emptyState().at(h.Epoch, h.Revision)
	total := 0
	for {
		payload, err := fr.read()
		if err != nil {
			return nil, h, noEOF(err) // a whole file ends with cacheEnd
		}
		var end cacheEnd
		if len(payload) > 0 && payload[0] == '{' { // no DeltaDiscoveryResponse begins so
			if err := json.Unmarshal(payload, &end); err != nil {
				return nil, h, fmt.Errorf("%w: %w", errNotCache, err)
			}
			if end.Resources != total {
				return nil, h, errTruncated
			}
			return s, h, nil
		}
		chunk := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(payload, chunk); err != nil {
			return nil, h, fmt.Errorf("%w: %w", errNotCache, err)
		}
		total += len(chunk.GetResources())
		s = applyChange(s, chunk)
	}
}

func wireResource(r *Resource) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body}
}

func applyChange(s *State, change *discoveryv3.DeltaDiscoveryResponse) *State {
	upsert := make([]*Resource, 0, len(change.GetResources()))
	for _, r := range change.GetResources() {
		upsert = append(upsert, &Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	return s.with(change.GetTypeUrl(), upsert, change.GetRemovedResources())
}

// encode returns the record as epoch, revision and the length-prefixed changes.
func (rec cacheRecord) encode() ([]byte, error) {
	out := protowire.AppendVarint(nil, rec.Epoch)
	out = protowire.AppendVarint(out, rec.Revision)
	for _, change := range rec.Changes {
		b, err := proto.Marshal(change)
		if err != nil {
			return nil, err
		}
		out = protowire.AppendBytes(out, b)
	}
	return out, nil
}

var errRecord = errors.New("a record cannot be read")

func decodeRecord(b []byte) (cacheRecord, error) {
	var rec cacheRecord
	for _, field := range []*uint64{&rec.Epoch, &rec.Revision} {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return rec, errRecord
		}
		*field, b = v, b[n:]
	}
	for len(b) > 0 {
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return rec, errRecord
		}
		change := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(v, change); err != nil {
			return rec, fmt.Errorf("%w: %w", errRecord, err)
		}
		rec.Changes = append(rec.Changes, change)
		b = b[n:]
	}
	return rec, nil
}
