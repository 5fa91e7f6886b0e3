package xds

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// Source offers the snapshots of groups. [Hub] is the usual one.
type Source interface {
	// Subscribe returns a feed of a group's snapshots for a node. wake is called
	// after every change of Current, from any goroutine and perhaps under a lock;
	// it does not block. The error is sent to the data plane: a gRPC status, else
	// UNAVAILABLE.
	Subscribe(group string, node *corev3.Node, wake func()) (Feed, error)
}

// Feed is one subscription. Its methods may be called concurrently.
type Feed interface {
	// Current returns the newest snapshot. Nil is "not ready": the data plane is
	// refused, never told that there is nothing.
	Current() *snapshot.Snapshot
	// Close ends the subscription; wake is not called after it returned.
	Close()
}

// Stream identifies one stream of one data plane. It is immutable.
type Stream struct {
	// ID is unique among the streams of this process and never 0.
	ID uint64
	// Group and Node name the data plane.
	Group, Node string
	// UserAgent is name/version, for example `envoy/1.40.0`; may be empty.
	UserAgent string
	// Protocol is `delta` or `sotw`.
	Protocol string
	// TypeURL is the type of a per-type stream; empty for ADS.
	TypeURL string
	// Relay tells that it is a relay, not a data plane.
	Relay bool
	// Address is the peer's.
	Address string
	// ConnectedAt is when the stream's first request was accepted.
	ConnectedAt time.Time
}

// Sole reports whether a data plane has one stream of this sort: of ADS, or of
// one of the types that it subscribes to as a whole. Of the others an Envoy without
// ADS has one per resource.
func (s *Stream) Sole() bool {
	return s.TypeURL == "" || s.TypeURL == compile.ClusterType || s.TypeURL == compile.ListenerType
}

// Observer is told what happens on streams. The calls of one stream come in
// order and not concurrently, those of different streams concurrently. They must
// not block and not keep the slices they are given.
type Observer interface {
	// Connected: the first request was accepted.
	Connected(*Stream)
	// Subscribed: what the data plane subscribes to of a type changed.
	Subscribed(*Stream, Subscribed)
	// Sent: a response is on its way.
	Sent(*Stream, Sent)
	// Acked: a response was acknowledged.
	Acked(*Stream, Acked)
	// Nacked: resources were refused and are held back until their content
	// changes. A refused response of several resources is first sent again in
	// parts; Nacked comes when the refused resources are known.
	Nacked(*Stream, Nacked)
	// Synced: everything that the data plane subscribes to is acknowledged up to
	// the version, refused resources apart. It comes for versions that change
	// nothing for the data plane, too.
	Synced(*Stream, snapshot.Version)
	// Disconnected: the stream ended; err is nil when the data plane ended it.
	Disconnected(s *Stream, err error)
}

// Subscribed is a subscription to a type.
type Subscribed struct {
	TypeURL string
	// Names is the number of resources subscribed to by name.
	Names    int
	Wildcard bool
	// Listeners are the names, in order, where the type is that of listeners and
	// the client one of gRPC's own: what it calls, or listens on. Some are left out
	// when they are very many.
	Listeners []string
}

// Sent is a response on its way.
type Sent struct {
	TypeURL string
	// From is what the data plane has of the type, To what it will have when it
	// has accepted this and the rest of the same push. From is zero at first.
	From, To snapshot.Version
	// Resources and Removed count what the response holds; Bytes is its size.
	Resources, Removed, Bytes int
}

// Acked is an acknowledged response.
type Acked struct {
	TypeURL string
	// Version is what the data plane now has of the type, whole.
	Version snapshot.Version
	// Cleared names resources that were refused before and no longer are.
	Cleared []string
	// After is how long the response was on its way, SincePublished how long ago
	// the snapshot was published; 0 when that is not known.
	After, SincePublished time.Duration
}

// Nacked is a refusal.
type Nacked struct {
	TypeURL string
	// Detail is what the data plane said.
	Detail string
	// Refused are the refused resources.
	Refused []Refused
	// Truncated counts further refused resources that are not listed.
	Truncated int
}

// Refused is one refused resource.
type Refused struct {
	Name string
	// Version is the refused version and Rev the revision that brought it.
	Version string
	Rev     uint64
	// Serving is the version that the data plane keeps; empty when it has none or
	// that is not known.
	Serving string
	// Origins are the objects behind the resource, nearest first.
	Origins []resource.Key
	// Detail is what the data plane said about this resource, where it told the
	// refused resources apart; else empty.
	Detail string
}

// NopObserver ignores everything. Embed it to implement a part of Observer.
type NopObserver struct{}

var _ Observer = NopObserver{}

func (NopObserver) Connected(*Stream)                {}
func (NopObserver) Subscribed(*Stream, Subscribed)   {}
func (NopObserver) Sent(*Stream, Sent)               {}
func (NopObserver) Acked(*Stream, Acked)             {}
func (NopObserver) Nacked(*Stream, Nacked)           {}
func (NopObserver) Synced(*Stream, snapshot.Version) {}
func (NopObserver) Disconnected(*Stream, error)      {}
