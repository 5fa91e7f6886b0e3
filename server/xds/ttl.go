package xds

import (
	"time"

	"github.com/musterhq/muster/server/snapshot"
)

// beat prolongs the life of what the client has of a type, where resources have a
// TTL: three times within it. A heartbeat is no update: it has names and versions
// without bodies, and its answer changes nothing.
func (s *session) beat(now time.Time, t *track) {
	if t.busy() || t.goal != nil || t.held == nil {
		return
	}
	if t.beat.IsZero() {
		t.beat = now.Add(s.ttl / 3)
	}
	if now.Before(t.beat) {
		return
	}
	t.beat = now.Add(s.ttl / 3)
	for i, f := range s.heartbeats(t) {
		if c := (chunk{frame: f, kind: heartbeat}); i == 0 {
			s.send(now, t, c)
		} else {
			t.queue = append(t.queue, c)
		}
	}
}

func (s *session) heartbeats(t *track) []*snapshot.Frame {
	if t.wildcard && len(t.refused)+len(t.extra)+len(t.old) == 0 {
		if t.held.Len() == 0 {
			return nil
		}
		return s.encoder.Heartbeat(t.typeURL, t.held, s.delta)
	}
	// The version must be the client's, or it would take the heartbeat for an update.
	var has []*snapshot.Resource
	for r := range t.held.All() {
		if !t.wants(r.Name) {
			continue
		}
		if p, ok := t.old[r.Name]; ok {
			r = p.resource
		}
		if r != nil && t.refused[r.Name] != nil {
			r = t.refused[r.Name].good
		}
		if r != nil {
			has = append(has, r)
		}
	}
	for name, x := range t.extra {
		if t.wants(name) && x.resource != nil {
			has = append(has, x.resource)
		}
	}
	if len(has) == 0 {
		return nil
	}
	return s.encoder.EncodeHeartbeat(t.typeURL, t.held.String(), has, s.delta)
}
