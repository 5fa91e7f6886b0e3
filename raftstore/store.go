package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/state"
)

// Store is one server of the replicated store. Make it with Open, then call
// Run, or Close. All other methods may be called concurrently, and from before
// Run on.
type Store struct {
	// Read-only after Open.
	cfg    Config
	id     string
	logger *slog.Logger
	log    *logStore
	cache  *raft.LogCache
	snaps  *snapshotStore
	fsm    *fsm
	dog    *watchdog
	wire   *wire // nil for a cluster of one in memory
	trans  raft.Transport
	// snapshotIndex is the log index of the snapshot that the server starts from.
	snapshotIndex uint64

	// raft is set by Run before started is closed.
	raft    *raft.Raft
	started chan struct{}
	stopped chan struct{}
	running atomic.Bool

	watch watchers
	turns watchers // woken when the leader changes
	// bereaved names a leader whose connection has ended.
	bereaved chan string
	reads    readBatcher
	// proposals are the commands to be committed while this server leads.
	proposals proposer
	leader    leadership
	// failed holds the first error that ends Run.
	failed chan error
	// gate is held shared by each proposal until raft has answered it, and
	// exclusively by a restore, which raft would let proposals race with.
	gate sync.RWMutex
	// restoring makes proposals come back later, so that a restore finds an end
	// of them.
	restoring atomic.Bool
	// admitted is set once this server has data, or was let into a cluster.
	admitted atomic.Bool
	// ready is set once the server has caught up after its start.
	ready    atomic.Bool
	draining atomic.Bool
}

// Open opens the data directory, checks what is in it, and binds RaftAddr. The
// error is a *CorruptError when the data is damaged. The caller must call Run
// or Close.
func Open(cfg Config) (_ *Store, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		cfg:     cfg,
		logger:  cfg.Logger,
		started: make(chan struct{}),
		stopped: make(chan struct{}),
		failed:  make(chan error, 1),

		bereaved: make(chan string, 1),
	}
	s.proposals.wake = make(chan struct{}, 1)
	s.reads = readBatcher{wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	s.fsm = newFSM(cfg.Logger, s.watch.wake, s.fail)
	if s.id, err = serverID(cfg.DataDir, cfg.ServerID); err != nil {
		return nil, err
	}
	s.logger = cfg.Logger.With("server", s.id)
	if s.log, err = openLog(cfg.DataDir, cfg.disk, cfg.Fatal); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	if s.log.sealer, err = openSealer(cfg.DataDir, cfg.AtRest); err != nil {
		return nil, err
	}
	free := cfg.disk.free
	if free == nil {
		free = freeBytes
	}
	s.dog = &watchdog{dir: cfg.DataDir, log: s.log, limit: cfg.DiskTimeout, fatal: cfg.Fatal, free: free, floor: cfg.MinFreeBytes}
	s.dog.measure()
	if s.cache, err = raft.NewLogCache(512, s.log); err != nil {
		return nil, err
	}
	if err := removeLeftovers(cfg.DataDir); err != nil {
		return nil, err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(cfg.DataDir, 3, newRaftLogger(s.logger, "snapshots"))
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s.snaps = &snapshotStore{files, filepath.Join(cfg.DataDir, "snapshots"), cfg.AtRest}
	// Raft makes what is in it readable to all, and DataDir may not be of our
	// making.
	if err := os.Chmod(filepath.Join(cfg.DataDir, "snapshots"), 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if err := s.checkData(); err != nil {
		return nil, err
	}
	if err := s.openTransport(); err != nil {
		return nil, err
	}
	err = s.recoverPeers()
	if err == nil {
		err = s.bootstrap()
	}
	if err != nil {
		s.closeTransport()
		return nil, err
	}
	return s, nil
}

// checkData reads what raft would start from, and refuses it by name when it
// does not hold: raft itself would take an older snapshot, or panic.
func (s *Store) checkData() error {
	metas, err := s.snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	if err := s.snaps.complete(metas); err != nil {
		return err
	}
	from := uint64(0)
	if len(metas) > 0 {
		st, err := s.readStored(metas[0].ID)
		var locked *LockedError
		if errors.As(err, &locked) {
			return err
		}
		if err != nil {
			return &CorruptError{filepath.Join(s.cfg.DataDir, "snapshots", metas[0].ID), err.Error()}
		}
		// Until raft has started, this is the state that it will start from.
		s.fsm.state.Store(st)
		s.snapshotIndex = metas[0].Index
		from = metas[0].Index + 1
	}
	return s.log.verify(from)
}

// readStored reads one of the server's own snapshots to the end.
func (s *Store) readStored(id string) (*state.State, error) {
	_, r, err := s.snaps.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readSnapshot(r)
}

func (s *Store) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(s.id)
	c.HeartbeatTimeout = s.cfg.HeartbeatTimeout
	c.ElectionTimeout = s.cfg.ElectionTimeout
	c.LeaderLeaseTimeout = s.cfg.LeaderLease
	// How soon followers hear that an entry is committed when no other follows it. Their
	// data planes wait for it; a leader without writes pays a message each for it.
	c.CommitTimeout = 10 * time.Millisecond
	c.MaxAppendEntries = 128
	c.SnapshotThreshold = s.cfg.SnapshotThreshold
	c.SnapshotInterval = s.cfg.SnapshotInterval
	c.TrailingLogs = s.cfg.TrailingLogs
	c.Logger = newRaftLogger(s.logger, "raft")
	c.NotifyCh = notify
	c.NoLegacyTelemetry = true
	// The server stays up when it is removed, to say so.
	c.ShutdownOnRemove = false
	return c
}

// bootstrap makes a new data directory the first server of a cluster, if asked to.
func (s *Store) bootstrap() error {
	exists, err := raft.HasExistingState(s.log, s.log, s.snaps)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if exists {
		s.admitted.Store(true)
		return nil
	}
	if !s.cfg.Bootstrap {
		if s.wire == nil {
			return fmt.Errorf("the data directory %s is new; Bootstrap makes it a cluster", s.cfg.DataDir)
		}
		return nil
	}
	self := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(s.id), Address: s.trans.LocalAddr(),
	}}}
	if err := raft.BootstrapCluster(s.raftConfig(nil), s.log, s.log, s.snaps, s.trans, self); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	s.admitted.Store(true)
	s.logger.Info("made a new cluster", "address", s.trans.LocalAddr())
	return nil
}

// Run takes part in the cluster until ctx ends or the store cannot go on. It
// hands leadership on before it stops. It returns nil after ctx has ended, and
// only once everything that it started has ended.
func (s *Store) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("raftstore: the store runs or has run")
	}
	defer s.closeFiles()
	defer close(s.stopped)
	notify := make(chan bool, 8)
	r, err := raft.NewRaft(s.raftConfig(notify), s.fsm, s.cache, s.log, s.snaps, s.trans)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	s.raft = r
	// The filter runs inside raft, which it must not hold up; nothing is
	// ever sent to the observer itself.
	r.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			s.turns.wake()
		}
		return false
	}))
	close(s.started)

	// The children outlive ctx: they are needed to hand leadership on.
	children, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.dog.Run(children) })
	wg.Go(func() { s.lead(children, notify) })
	endReads := s.beginReads(children)
	wg.Go(func() { s.serveProposals(children) })
	wg.Go(func() { s.catchUp(children) })
	if s.wire != nil {
		wg.Go(func() { s.wire.serve(children, s) })
		wg.Go(func() { s.announce(children) })
		wg.Go(func() { s.succeed(children) })
	}
	s.electSole()

	select {
	case <-ctx.Done():
		s.handOver()
	case err = <-s.failed:
		s.logger.Error("the store cannot go on", "error", err)
	}
	endReads()
	if s.wire != nil {
		s.wire.hangUp()
	}
	if stopErr := r.Shutdown().Error(); err == nil && stopErr != nil {
		err = fmt.Errorf("stop raft: %w", stopErr)
	}
	stop()
	wg.Wait()
	// All proposals have been answered by now; wait for those who pass it on.
	s.gate.Lock()
	defer s.gate.Unlock()
	return err
}

// Close releases what Open opened, for a store that is never run.
func (s *Store) Close() error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("raftstore: the store runs or has run")
	}
	close(s.stopped)
	s.closeTransport()
	return s.closeFiles()
}

func (s *Store) closeFiles() error { return s.log.Close() }

// fail ends Run with an error; only the first one counts.
func (s *Store) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// handOver moves leadership to another voter before this server goes.
func (s *Store) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		s.logger.Warn("leadership could not be handed on before the stop", "error", err)
	}
}

const handOverTimeout = 6 * time.Second

// ServerID is the id of this server.
func (s *Store) ServerID() string { return s.id }

// State is this server's state: a snapshot that never changes. It reflects
// everything committed only after ReadIndex.
func (s *Store) State() *state.State { return s.fsm.state.Load() }

// Watch returns a channel that holds a token whenever the state was replaced
// since the last receive, and a function that ends the watch.
func (s *Store) Watch() (<-chan struct{}, func()) { return s.watch.add() }

// Leader names the leader as far as this server knows, and whether it is
// itself; empty strings when there is none.
func (s *Store) Leader() (id, addr string, isSelf bool) {
	if s.up() != nil {
		return "", "", false
	}
	a, i := s.raft.LeaderWithID()
	return string(i), string(a), string(i) == s.id && s.raft.State() == raft.Leader
}

// up tells whether raft runs.
func (s *Store) up() error {
	select {
	case <-s.stopped:
		return ErrStopped
	default:
	}
	select {
	case <-s.started:
		return nil
	default:
		return ErrNotReady
	}
}

// waitStarted waits for Run.
func (s *Store) waitStarted(ctx context.Context) error {
	select {
	case <-s.started:
		return nil
	case <-s.stopped:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNoLeader, ctx.Err())
	}
}
