package dataplane

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

type rpcStatus = rpcstatus.Status

const codeInvalidArgument = int32(codes.InvalidArgument)

type streamResult struct {
	err        error
	lasted     time.Duration // since the first response; 0 when there was none
	unanswered string        // the first type asked for of which nothing came
	kept       *State        // the stream gave way to this, of the second home
}

type adsStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// stream holds one ADS stream to a server until it fails or ctx ends.
func (c *Client) stream(ctx context.Context, server string, fresh, byName bool) streamResult {
	conn, err := c.upstream.acquire(server)
	if err != nil {
		return streamResult{err: err}
	}
	bad := true
	defer func() { c.upstream.release(conn, bad) }()

	ctx, cancel := context.WithCancel(ctx)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()

	ads, kept, err := c.open(ctx, cancel, discoveryv3.NewAggregatedDiscoveryServiceClient(conn), &receiver)
	if kept != nil || err != nil {
		return streamResult{err: err, kept: kept}
	}
	c.log.Info("control plane stream opened", "server", server)

	responses := make(chan received)
	receiver.Go(func() { receiveAll(ctx, ads, responses) })
	s := newSession(&c.cfg, c.State(), c.floor, fresh)
	s.byName = byName
	s.types = c.wanted(time.Now())
	r := c.converse(ctx, ads, responses, s, server)
	// An error of the server's own is no fault of the connection.
	bad = r.lasted == 0 && status.Code(r.err) == codes.Unavailable
	return r
}

// open opens a stream within the time for it, unless the second home is faster.
func (c *Client) open(ctx context.Context, cancel context.CancelFunc, at discoveryv3.AggregatedDiscoveryServiceClient, opening *sync.WaitGroup) (adsStream, *State, error) {
	type opened struct {
		ads adsStream
		err error
	}
	result := make(chan opened, 1)
	giveUp := time.AfterFunc(c.cfg.Timing.Connect, cancel)
	opening.Go(func() {
		ads, err := at.DeltaAggregatedResources(ctx)
		result <- opened{ads, err}
	})
	for {
		select {
		case o := <-result:
			if !giveUp.Stop() && o.err == nil {
				o.err = context.DeadlineExceeded
			}
			return o.ads, nil, o.err
		case kept := <-c.lookedUp():
			c.looked()
			if kept != nil {
				giveUp.Stop()
				cancel()
				return nil, kept, nil
			}
		}
	}
}

type received struct {
	resp *discoveryv3.DeltaDiscoveryResponse
	err  error
}

// receiveAll passes responses on until the stream ends.
func receiveAll(ctx context.Context, ads adsStream, to chan<- received) {
	for {
		resp, err := ads.Recv()
		select {
		case to <- received{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// converse carries out what the session says.
func (c *Client) converse(ctx context.Context, ads adsStream, responses <-chan received, s *session, server string) (r streamResult) {
	answered := map[string]bool{}
	defer func() {
		if i := slices.IndexFunc(s.types, func(t string) bool { return !answered[t] }); i >= 0 {
			r.unanswered = s.types[i]
		}
	}()
	for i, req := range s.requests() {
		if i == 0 {
			req.Node = c.node
		}
		if r.err = ads.Send(req); r.err != nil {
			r.err = streamError(ctx, r.err, responses, answered)
			return r
		}
	}
	var first time.Time
	defer func() {
		if !first.IsZero() {
			r.lasted = max(time.Since(first), 1)
		}
	}()
	silence := time.NewTimer(s.wait())
	defer silence.Stop()
	for {
		var next step
		select {
		case <-ctx.Done():
			r.err = ctx.Err()
			return r
		case <-silence.C:
			next = s.silence()
		case kept := <-c.lookedUp():
			c.looked()
			if kept == nil {
				continue
			}
			r.kept = kept
			return r
		case in := <-responses:
			if in.err != nil {
				r.err = in.err
				return r
			}
			if first.IsZero() {
				c.enough()
				first = time.Now()
				c.connected(server)
			}
			answered[in.resp.GetTypeUrl()] = true
			c.cfg.Hooks.received(Received{
				TypeURL: in.resp.GetTypeUrl(), Resources: len(in.resp.GetResources()),
				Removed: len(in.resp.GetRemovedResources()), Bytes: proto.Size(in.resp),
			})
			next = s.receive(in.resp)
		}
		if next.leave != nil {
			r.err = next.leave
			return r
		}
		acks, wait := next.acknowledge, next.wait
		if next.apply {
			acks = append(c.applyReceived(ctx, s), acks...)
			wait = s.wait()
		}
		if r.err = c.acknowledge(ads, acks); r.err != nil {
			r.err = streamError(ctx, r.err, responses, answered)
			return r
		}
		silence.Stop()
		if wait > 0 {
			silence.Reset(wait)
		}
	}
}

// applyReceived applies what the session has received.
func (c *Client) applyReceived(ctx context.Context, s *session) []*held {
	u := s.update(c.cfg.Group)
	if c.cfg.WriteAhead {
		c.persist(u.Previous, u.State, u)
	}
	err := c.apply(ctx, u)
	acks := s.done(u, err)
	c.serve(s.applied, u, err)
	if err != nil {
		c.log.Warn("configuration refused", "epoch", u.Epoch, "revision", u.Revision, "error", err)
	}
	if s.applied == u.Previous {
		return acks
	}
	c.log.Debug("configuration in service", "epoch", u.Epoch, "revision", u.Revision)
	if !c.cfg.WriteAhead {
		c.persist(u.Previous, s.applied, u)
	}
	return acks
}

func (c *Client) acknowledge(ads adsStream, acks []*held) error {
	for _, h := range acks {
		if err := ads.Send(h.request()); err != nil {
			return err
		}
		c.cfg.Hooks.acknowledged(Acknowledged{TypeURL: h.typeURL, Err: h.err})
	}
	return nil
}

func (c *Client) connected(server string) {
	c.mu.Lock()
	c.status.Server, c.status.Since, c.status.LastError = server, time.Now(), nil
	c.mu.Unlock()
	c.cfg.Hooks.connected(server)
}

// streamError returns why the stream ended when a Send says only that it did, and
// notes the types of the responses that came before the end.
func streamError(ctx context.Context, err error, responses <-chan received, answered map[string]bool) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for {
		select {
		case in := <-responses:
			if in.err != nil {
				return in.err
			}
			answered[in.resp.GetTypeUrl()] = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
