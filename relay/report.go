package relay

import (
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"

	"github.com/musterhq/muster/server/fleet"
)

const (
	// reportInterval is how long news are gathered before they are reported;
	// reportUrgent while somebody upstream waits for acknowledgements. A report at
	// once would tell of the first data planes to have a change, and take its time
	// from the others. reportIdle is the longest time between two reports.
	reportInterval = 250 * time.Millisecond
	reportUrgent   = 25 * time.Millisecond
	reportIdle     = 5 * time.Second
)

// reporter decides what is reported upstream, and when. It is used from one
// goroutine.
type reporter struct {
	id, version string
	fleet       *fleet.Registry
	carriers    *carriers

	// Of the stream.
	number  uint64 // of the last report
	pending bool   // it was not received yet
	urgent  bool
	since   uint64 // the fleet's changes up to here were reported
	until   uint64 // those up to here are in the pending report
	more    bool   // the fleet had more than fitted
	served  uint64 // publications that were reported
	last    time.Time
	news    time.Time // since when there is something to report; zero when nothing is
}

// begin starts over on a new stream: everything is reported again.
func (r *reporter) begin() {
	r.fleet.Hurry(false)
	*r = reporter{id: r.id, version: r.version, fleet: r.fleet, carriers: r.carriers}
}

// answered takes in a response of the upstream.
func (r *reporter) answered(resp *musterv1.AttendResponse) {
	r.urgent = resp.GetUrgent()
	r.fleet.Hurry(r.urgent) // the relays below
	if r.pending && resp.GetReceived() == r.number {
		r.pending, r.since = false, r.until
	}
}

// due returns the next report; nil when there is none to send now. Nothing is
// reported before the upstream has answered.
func (r *reporter) due(heard bool, now time.Time) *musterv1.RelayReport {
	if !heard || r.pending {
		return nil
	}
	wait := reportInterval
	if r.urgent {
		wait = reportUrgent
	}
	published := r.carriers.published.Load()
	if r.news.IsZero() && (r.fleet.Changes() != r.since || published != r.served) {
		r.news = now
	}
	switch {
	case r.last.IsZero(), r.more, now.Sub(r.last) >= reportIdle:
	case r.news.IsZero() || now.Sub(r.news) < wait:
		return nil
	}
	r.news = time.Time{}
	planes, until, more := r.fleet.Presence(r.since)
	r.number++
	r.pending, r.until, r.more, r.served, r.last = true, until, more, published, now
	return &musterv1.RelayReport{Number: r.number, DataPlanes: planes, Relays: r.relays()}
}

// relays returns this relay and those below it.
func (r *reporter) relays() []*musterv1.RelayState {
	out := []*musterv1.RelayState{{Id: r.id, Connected: true, Version: r.version, Groups: r.carriers.versions()}}
	for _, s := range r.fleet.RelayStates() {
		if s.GetRelay() == "" {
			s.Relay = r.id
		}
		out = append(out, s)
	}
	return out
}
