package relay

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/ops"
)

// ports are the servers behind the listeners.
type ports struct {
	xds *grpc.Server
	ops *http.Server // nil without an ops port
}

func (r *Relay) openPorts(parts *errgroup.Group) *ports {
	opts := r.xds.ServerOptions()
	if r.certs != nil {
		opts = append(opts, grpc.Creds(auth.CutAtExpiry(credentials.NewTLS(r.certs.Config("h2")))))
	}
	p := &ports{xds: grpc.NewServer(opts...)}
	r.xds.Register(p.xds)
	r.relays.Register(p.xds)
	parts.Go(func() error { return serving(p.xds.Serve(r.xds.Listener(r.ln))) })
	if r.opsLn != nil {
		p.ops = &http.Server{Handler: ops.Handler(r.Ready, promhttp.HandlerFor(r.metrics.registry, promhttp.HandlerOpts{})), ReadHeaderTimeout: 5 * time.Second}
		parts.Go(func() error { return serving(p.ops.Serve(r.opsLn)) })
	}
	return p
}

// serving drops the errors by which a server that was stopped says so.
func serving(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// closePorts sends data planes elsewhere and closes every port.
func (r *Relay) closePorts(grace context.Context, p *ports) {
	r.relays.Drain()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.xds.GracefulStop()
	}()
	// GracefulStop waits for streams, which never end by themselves. A few need no
	// spreading; thousands should not all arrive at the next at once.
	const each = 4 * time.Millisecond
	live := 0
	for _, g := range r.carriers.all() {
		live += r.fleet.LiveHere(g.group.GetId())
	}
	spread, cancel := context.WithTimeout(grace, 20*time.Millisecond+each*time.Duration(live))
	defer cancel()
	if err := r.xds.Shutdown(spread); err != nil {
		r.cfg.Logger.Debug("the last data planes were cut off at once", "error", err)
	}
	select {
	case <-stopped:
	case <-grace.Done():
		p.xds.Stop()
		<-stopped
	}
	if p.ops != nil {
		_ = p.ops.Close()
	}
}

// authorize tells which group a data plane belongs to: the id of the one that it
// names, that its certificate allows and that the relay carries.
func (r *Relay) authorize(ctx context.Context, node *corev3.Node) (string, error) {
	name, err := r.planes().Authorize(ctx, node)
	if err != nil {
		return "", err
	}
	// What the upstream is about to bring comes within milliseconds: waiting that
	// long beats sending the data plane away into its back-off.
	wait, cancel := context.WithTimeout(ctx, firstPublication)
	defer cancel()
	id, found, told := r.carriers.await(wait, name, r.carriers.apart(node))
	switch {
	case found:
		return id, nil
	case !told:
		return "", errNotTold
	}
	return "", status.Errorf(codes.NotFound, "this relay carries no group %q", name)
}

// firstPublication is how long a data plane may wait for its group to be served
// for the first time.
const firstPublication = 2 * time.Second

func (r *Relay) planes() auth.DataPlanes {
	return auth.DataPlanes{TrustDomain: r.cfg.TrustDomain, Plaintext: r.certs == nil}
}
