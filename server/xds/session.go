package xds

import (
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// session is one stream of one data plane: what it subscribes to, what it holds
// and what is on its way. It is used from one goroutine at a time and does no
// I/O: the stream feeds it requests, snapshots and time, and carries out the
// effects. An error of its methods ends the stream.
type session struct {
	// Set once.
	cfg     *sessionConfig
	client  client
	encoder *snapshot.Encoder
	ttl     time.Duration // of the resources sent; 0 for none
	delta   bool
	only    string // the type of a per-type stream; empty for ADS
	began   time.Time

	newest *snapshot.Snapshot
	// released is the newest snapshot whose clusters the client has: routes may
	// refer to them. Nil until the first clusters are in place.
	released *snapshot.Snapshot
	// pinned is the snapshot that a client with a manifest is being brought to.
	pinned *snapshot.Snapshot
	whole  bool // the client applies revisions whole
	// resumed: the client came back with what it held on an earlier stream.
	resumed bool

	tracks []*track // by rank
	nonce  uint64
	synced snapshot.Version

	parked []parked // requests that wait for this server to catch up
	need   snapshot.Version
	until  time.Time // when that wait ends

	effects []effect
}

// sessionConfig is what all sessions of a server share.
type sessionConfig struct {
	encoder *snapshot.Encoder
	mortal  *snapshot.Encoder // of resources with a TTL
	errors  bool              // see Config.ResourceErrors
	limits  Limits
	timing  Timing
}

// parked is a request that is kept, with bytes of its own.
type parked struct{ request request }

// maxParked bounds the requests that wait.
const maxParked = 256

// effect is something that the stream has to do. One of the pointers is set.
type effect struct {
	frame *snapshot.Frame // to send, with the nonce
	nonce uint64
	track *track

	sent Sent
	// refusedFrame: a response was refused, whatever follows from that.
	refusedFrame bool
	acked        *Acked
	nacked       *Nacked
	subscribed   *Subscribed
	synced       snapshot.Version
}

func newSession(cfg *sessionConfig, now time.Time, c client, delta bool, only string, first *snapshot.Snapshot) *session {
	s := &session{
		cfg: cfg, client: c, delta: delta, only: only, began: now, newest: first,
		whole: c.family == musterClient, encoder: cfg.encoder,
	}
	if cfg.timing.TTL > 0 && c.ttl && (delta || c.wrapped) {
		s.encoder, s.ttl = cfg.mortal, cfg.timing.TTL
	}
	return s
}

// gated reports whether routes wait for clusters, and removals for routes.
func (s *session) gated() bool {
	return s.only == "" && !s.whole && s.client.family != grpcClient
}

// splits reports whether the type's removals go after the routes.
func (s *session) splits(t *track) bool { return t.split && s.only == "" && !s.whole }

// feed takes in the newest snapshot.
func (s *session) feed(now time.Time, snap *snapshot.Snapshot) error {
	if snap == nil {
		return errNotReady
	}
	s.newest = snap
	if len(s.parked) > 0 && !snap.Version().Less(s.need) {
		waiting := s.parked
		s.parked = nil
		for _, p := range waiting {
			if err := s.take(now, &p.request); err != nil {
				return err
			}
		}
	}
	s.pump(now)
	return nil
}

// tick takes in that time has passed; see deadline.
func (s *session) tick(now time.Time) error {
	if len(s.parked) > 0 && !now.Before(s.until) {
		return status.Errorf(codes.Unavailable, "this server is at version %s and the data plane has %s: it must not go back",
			s.newest.Version(), s.need)
	}
	for _, t := range s.tracks {
		if len(t.flights) > 0 && !now.Before(t.flights[0].sent.Add(s.cfg.timing.Ack)) {
			return status.Errorf(codes.DeadlineExceeded, "no answer to a response of %s", t.typeURL)
		}
	}
	s.pump(now)
	return nil
}

// deadline returns when tick is due; zero when nothing waits for time.
func (s *session) deadline() time.Time {
	var at time.Time
	earliest := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if len(s.parked) > 0 {
		earliest(s.until)
	}
	settled := s.began.Add(s.cfg.timing.Settle)
	if s.released == nil && (s.awaitsClusters(settled.Add(-1)) || s.awaitsEndpoints(settled.Add(-1))) {
		earliest(settled)
	}
	for _, t := range s.tracks {
		if len(t.flights) > 0 {
			earliest(t.flights[0].sent.Add(s.cfg.timing.Ack))
			if t.typeURL == compile.ClusterType && s.gated() && t.goalAt != nil &&
				(s.released == nil || s.released.Version().Less(t.goalAt.Version())) {
				earliest(t.pushed.Add(s.cfg.timing.Gate))
			}
		} else if s.ttl > 0 && !t.beat.IsZero() {
			earliest(t.beat)
		}
		if !t.warmBy.IsZero() && len(s.parked) == 0 {
			earliest(t.warmBy)
			if !t.warmAt.IsZero() {
				earliest(t.warmAt)
			}
		}
		if !t.busy() && !t.linger.IsZero() && len(t.extra) > 0 && t.goal == nil {
			earliest(t.linger)
		}
	}
	return at
}

// request takes in a request of the client. Its bytes are not kept.
func (s *session) request(now time.Time, r *request) error {
	if len(s.parked) > 0 {
		return s.park(r)
	}
	if ahead, ok := s.ahead(r); ok {
		s.need, s.until = ahead, now.Add(s.cfg.timing.CatchUp)
		return s.park(r)
	}
	if err := s.take(now, r); err != nil {
		return err
	}
	s.pump(now)
	return nil
}

func (s *session) park(r *request) error {
	if len(s.parked) >= maxParked {
		return overLimit(reasonParked, "too many requests while this server catches up")
	}
	parse := parseSotW
	if r.delta {
		parse = parseDelta
	}
	own, err := parse(slices.Clone(r.raw))
	s.parked = append(s.parked, parked{own})
	return err
}

// ahead returns the newest version that a first request shows where it is newer
// than anything this server has.
func (s *session) ahead(r *request) (newest snapshot.Version, ahead bool) {
	if t := s.find(string(r.typeURL)); t != nil {
		return newest, false // its versions are of this stream
	}
	newest = r.newest
	if v, _, ok := snapshot.ParseVersion(r.version); ok && newest.Less(v) {
		newest = v
	}
	if newest.Epoch == 0 {
		return newest, false // of a relay's upstream without revisions: no order of ours
	}
	return newest, s.newest.Version().Less(newest)
}

// take carries out a request, apart from sending.
func (s *session) take(now time.Time, r *request) error {
	typeURL := string(r.typeURL)
	switch {
	case s.only != "" && typeURL == "":
		typeURL = s.only
	case typeURL == "":
		return status.Error(codes.InvalidArgument, "type_url is required on an aggregated stream")
	case s.only != "" && typeURL != s.only:
		return status.Errorf(codes.InvalidArgument, "type_url %q on a stream of %q", typeURL, s.only)
	}
	t := s.find(typeURL)
	first := t == nil
	if first {
		var err error
		if t, err = s.begin(typeURL); err != nil {
			return err
		}
	}
	names, wildcard := t.names.sum, t.wildcard
	var err error
	if s.delta {
		err = s.takeDelta(now, t, r, first)
	} else {
		err = s.takeSotW(now, t, r, first)
	}
	if err != nil {
		return err
	}
	if first && (r.initial > 0 || len(r.version) > 0) {
		s.resumed = true
	}
	if cds := s.find(compile.ClusterType); first && cds != nil && typeURL == compile.EndpointType && s.gated() {
		for i := range cds.flights {
			s.warm(cds.flights[i].test) // on their way already
		}
	}
	if first || names != t.names.sum || wildcard != t.wildcard {
		s.effects = append(s.effects, effect{track: t, subscribed: &Subscribed{typeURL, t.names.len(), t.wildcard, s.listeners(t)}})
	}
	return nil
}

// maxListeners bounds the names of one Subscribed.
const maxListeners = 100

// listeners lists what a gRPC client calls or listens on, if the type is theirs.
func (s *session) listeners(t *track) []string {
	if t.typeURL != compile.ListenerType || s.client.family != grpcClient {
		return nil
	}
	all := slices.Sorted(t.names.all())
	return all[:min(len(all), maxListeners):min(len(all), maxListeners)]
}

func (s *session) find(typeURL string) *track {
	for _, t := range s.tracks {
		if t.typeURL == typeURL {
			return t
		}
	}
	return nil
}

// begin adds a type to the stream.
func (s *session) begin(typeURL string) (*track, error) {
	if l := s.cfg.limits.Types; l > 0 && len(s.tracks) >= l {
		return nil, overLimit(reasonTypes, "more than %d types on one stream", l)
	}
	o, rank := orderOf(typeURL)
	if !utf8.ValidString(typeURL) {
		return nil, status.Error(codes.InvalidArgument, "type_url is not valid UTF-8")
	}
	t := &track{order: o, rank: rank}
	at := len(s.tracks)
	for at > 0 && s.tracks[at-1].rank > rank {
		at--
	}
	s.tracks = slices.Insert(s.tracks, at, t)
	if o.stage == stageManifest {
		s.whole = true
	}
	s.synced = snapshot.Version{} // that was without this type
	return t, nil
}

// subscribe adds a name to a track; it reports whether that is new.
func (s *session) subscribe(t *track, name []byte) (added bool, err error) {
	if t.names.has(string(name)) {
		return false, nil
	}
	if !utf8.Valid(name) {
		return false, status.Errorf(codes.InvalidArgument, "a resource name of %s is not valid UTF-8", t.typeURL)
	}
	// Share the string with the resource, where there is one.
	if r, ok := s.newest.Set(t.typeURL, s.client.view).Find(name); ok {
		t.names.add(r.Name)
	} else {
		t.names.add(string(name))
	}
	return true, s.checkSubscriptions()
}

// checkSubscriptions fails when the stream subscribes to too many names.
func (s *session) checkSubscriptions() error {
	total := 0
	for _, t := range s.tracks {
		total += t.names.len() + len(t.globs)
	}
	if l := s.cfg.limits.Subscriptions; l > 0 && total > l {
		return overLimit(reasonSubscription, "more than %d subscriptions on one stream", l)
	}
	return nil
}

// pump sends what can be sent now, in order.
func (s *session) pump(now time.Time) {
	if len(s.parked) > 0 {
		return
	}
	if s.whole && !s.anyBusy() {
		s.pinned = s.newest
	}
	for _, t := range s.tracks {
		if t.stage == stageRoute && s.gated() {
			s.release(now)
		}
		s.advance(now, t)
	}
	for _, t := range s.tracks {
		if s.splits(t) {
			s.breakAway(now, t)
		}
		if s.ttl > 0 {
			s.beat(now, t)
		}
	}
	s.settle()
}

func (s *session) anyBusy() bool {
	return slices.ContainsFunc(s.tracks, (*track).busy)
}

// release moves on the snapshot that routes may refer to.
func (s *session) release(now time.Time) {
	to := s.newest
	cds := s.find(compile.ClusterType)
	if s.awaitsClusters(now) || s.released == nil && s.awaitsEndpoints(now) {
		return
	}
	if cds != nil && (cds.at == nil || cds.at != s.newest && !cds.held.Same(s.newest.Set(cds.typeURL, s.client.view))) {
		to = cds.at
		if cds.goalAt != nil && !now.Before(cds.pushed.Add(s.cfg.timing.Gate)) {
			to = cds.goalAt // waited long enough
		}
	}
	if to != nil && (s.released == nil || !to.Version().Less(s.released.Version())) {
		s.released = to
	}
}

// awaitsClusters reports whether an Envoy that came back is about to ask for its
// clusters. Those that it has may be out of date.
func (s *session) awaitsClusters(now time.Time) bool {
	return s.client.family == envoyClient && s.resumed && s.only == "" &&
		s.find(compile.ClusterType) == nil && now.Before(s.began.Add(s.cfg.timing.Settle))
}

// awaitsEndpoints reports whether an Envoy that came back is still to get endpoints.
// Where its last stream broke between a cluster and the cluster's endpoints it shows
// the cluster like any other, and only its request for endpoints tells.
func (s *session) awaitsEndpoints(now time.Time) bool {
	if s.client.family != envoyClient || !s.resumed || s.only != "" || !now.Before(s.began.Add(s.cfg.timing.Settle)) {
		return false
	}
	eds := s.find(compile.EndpointType)
	if eds == nil {
		return s.newest.Set(compile.EndpointType, s.client.view).Len() > 0
	}
	return len(eds.answers) > 0 || len(eds.queue) > 0
}

// allowed returns the snapshot that a type may be brought to; nil is "wait".
func (s *session) allowed(t *track) *snapshot.Snapshot {
	to := s.newest
	switch {
	case s.whole:
		to = s.pinned
		if t.stage == stageManifest && !s.allSent(t) {
			return nil
		}
	case s.gated() && t.stage == stageRoute:
		to = s.released
	}
	if to == nil || t.least != nil && to.Version().Less(t.least.Version()) {
		return nil
	}
	return to
}

// allSent reports whether every type but the manifest's is on its way to the
// pinned snapshot or there.
func (s *session) allSent(manifest *track) bool {
	for _, t := range s.tracks {
		if t == manifest {
			continue
		}
		if len(t.queue) > 0 || t.at != s.pinned && t.goalAt != s.pinned {
			return false
		}
	}
	return true
}

// advance sends what is due of one type.
func (s *session) advance(now time.Time, t *track) {
	if t.goal == nil && !t.busy() {
		to := s.allowed(t)
		if to == nil || t.deaf {
			return
		}
		set := to.Set(t.typeURL, s.client.view)
		t.names.settle(set)
		t.queue = s.compose(now, t, set, to.Version())
		if len(t.queue) == 0 {
			s.arrive(t, set, to)
			return
		}
		t.goal, t.goalAt, t.pushed, t.trials = set, to, now, 0
	} else if len(t.answers) > 0 && len(t.flights) < maxFlights {
		// Names are asked for while a push is under way: they are answered from
		// where it leads.
		set := t.goal
		if set == nil {
			set = t.held
		}
		if set != nil && s.delta {
			for _, c := range s.answerDelta(t, set) {
				s.send(now, t, c)
			}
		}
	}
	for len(t.queue) > 0 && (len(t.flights) == 0 || s.whole) {
		if _, wait := s.warming(now, t); wait {
			break
		}
		c := t.queue[0]
		t.queue = t.queue[1:]
		t.warmBy, t.warmAt = time.Time{}, time.Time{}
		s.send(now, t, c)
	}
	if len(t.queue) == 0 {
		t.queue = nil
	}
}

// maxFlights bounds the unacknowledged answers of a type.
const maxFlights = 8

func (s *session) compose(now time.Time, t *track, set *snapshot.Set, to snapshot.Version) []chunk {
	if s.delta {
		return s.composeDelta(t, set, to)
	}
	return s.composeSotW(now, t, set, to)
}

// arrive notes that the client holds a set.
func (s *session) arrive(t *track, set *snapshot.Set, at *snapshot.Snapshot) {
	t.held, t.at, t.least = set, at, at
	t.goal, t.goalAt = nil, nil
	t.accepted = nil
}

// send puts a response on its way.
func (s *session) send(now time.Time, t *track, c chunk) {
	if c.frame == nil {
		c.frame = s.frameSotW(t, &c)
	}
	if s.cfg.errors && len(c.missing) > 0 {
		c.frame = s.withErrors(c.frame, c.missing)
	}
	s.nonce++
	t.sent = s.nonce
	t.flights = append(t.flights, flight{chunk: c, nonce: s.nonce, sent: now})
	to := t.goalAt
	if to == nil {
		to = s.newest
	}
	e := effect{frame: c.frame, nonce: s.nonce, track: t, sent: Sent{
		TypeURL: t.typeURL, To: to.Version(),
		Resources: len(c.frame.Upserts), Removed: len(c.frame.Removed), Bytes: len(c.frame.Bytes),
	}}
	if t.at != nil {
		e.sent.From = t.at.Version()
	}
	s.effects = append(s.effects, e)
	if t.typeURL == compile.ClusterType && s.gated() {
		s.warm(c.test)
	}
}

// routesAt returns the oldest snapshot that a type which refers to clusters is
// at; nil while one of them has not got so far as to be at any.
func (s *session) routesAt() *snapshot.Snapshot {
	at := s.newest
	for _, t := range s.tracks {
		if t.stage != stageRoute || t.split {
			continue
		}
		if t.at == nil {
			return nil
		}
		if t.at.Version().Less(at.Version()) {
			at = t.at
		}
	}
	return at
}

// unanswered returns how many bytes of responses are on their way.
func (s *session) unanswered() int {
	n := 0
	for _, t := range s.tracks {
		for i := range t.flights {
			n += len(t.flights[i].frame.Bytes)
		}
	}
	return n
}

// breakAway removes what no route refers to any more.
func (s *session) breakAway(now time.Time, t *track) {
	if len(t.extra) == 0 || t.busy() || t.goal != nil || t.held == nil {
		return
	}
	routes := s.routesAt()
	if routes == nil {
		return
	}
	if chunks := s.composeRemoval(now, t, routes.Version()); len(chunks) > 0 {
		t.queue = chunks[1:]
		s.send(now, t, chunks[0])
	}
}

// settle reports the version up to which the client holds everything.
func (s *session) settle() {
	if len(s.tracks) == 0 || s.synced == s.newest.Version() {
		return
	}
	for _, t := range s.tracks {
		if t.at != s.newest || t.busy() || len(t.answers) > 0 {
			return
		}
		if s.owes(t) {
			return
		}
	}
	s.synced = s.newest.Version()
	s.effects = append(s.effects, effect{synced: s.synced})
}

// answered takes the flight of a nonce off; ok is false for a nonce of no flight.
func (t *track) answered(nonce []byte) (f flight, ok bool) {
	n, ok := parseNonce(nonce)
	if !ok {
		return flight{}, false
	}
	for i, f := range t.flights {
		if f.nonce == n {
			t.flights = slices.Delete(t.flights, i, i+1)
			if len(t.flights) == 0 {
				t.flights = nil
			}
			return f, true
		}
	}
	return flight{}, false
}

// acknowledge takes in that the client accepted a response.
func (s *session) acknowledge(now time.Time, t *track, f *flight) {
	a := &Acked{TypeURL: t.typeURL, After: now.Sub(f.sent), Cleared: t.clear(f)}
	for _, r := range f.test {
		if t.accepted != nil {
			t.accepted[r.Name] = true
		}
	}
	if s.landed(t) {
		if at := t.at.PublishedAt(); !at.IsZero() {
			a.SincePublished = now.Sub(at)
		}
	}
	if t.at != nil {
		a.Version = t.at.Version()
	}
	s.effects = append(s.effects, effect{track: t, acked: a})
}

// landed notes where the client is when everything of a push was answered, and
// reports whether it was.
func (s *session) landed(t *track) bool {
	if t.goal == nil || t.busy() {
		return false
	}
	s.arrive(t, t.goal, t.goalAt)
	return true
}

var errNotReady = status.Error(codes.Unavailable, "the configuration of the gateway group is not ready on this server")
