package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// arm is one xDS server under measurement. load is called once, before any
// client connects; change is called by one goroutine at a time.
type arm interface {
	// register adds the arm's services to a server.
	register(*grpc.Server)
	// options are the arm's own server options, in place of grpc-go's defaults.
	options() []grpc.ServerOption
	// load installs n resources.
	load(n int)
	// change replaces the given resources by newly stamped ones, in one update.
	change(stamp time.Time, indices ...int)
}

func newArm(name string) (arm, error) {
	switch name {
	case "floor":
		return newFloor(), nil
	case "linear":
		return newLinear(), nil
	case "snapshot":
		return newSnapshotCache(), nil
	case "muster":
		return newProduct()
	}
	return nil, fmt.Errorf("unknown arm %q: want floor, linear, snapshot or muster", name)
}

// armServer runs an arm and counts the messages that its clients send, alike
// for every arm: in steady state each is the ACK of one response.
type armServer struct {
	arm      arm
	addr     string
	received atomic.Int64
	grpc     *grpc.Server
	want     []uint64 // hash by resource index: what every client must end with
}

func startArm(name string, resources int, serverTLS *tls.Config) (*armServer, error) {
	a, err := newArm(name)
	if err != nil {
		return nil, err
	}
	s := &armServer{arm: a}
	opts := append([]grpc.ServerOption{grpc.StreamInterceptor(s.count)}, a.options()...)
	if serverTLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(serverTLS)))
	}
	s.grpc = grpc.NewServer(opts...)
	a.load(resources)
	s.want = make([]uint64, resources)
	for i := range s.want {
		s.want[i] = bodyHash(virtualHostBytes(i, time.Time{}))
	}
	a.register(s.grpc)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.addr = lis.Addr().String()
	go func() { _ = s.grpc.Serve(lis) }() // ends with the process
	return s, nil
}

// change changes resources and remembers what clients must now end with.
func (s *armServer) change(stamp time.Time, indices ...int) {
	s.arm.change(stamp, indices...)
	for _, i := range indices {
		s.want[i] = bodyHash(virtualHostBytes(i, stamp))
	}
}

func (s *armServer) count(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &countedStream{ss, &s.received})
}

type countedStream struct {
	grpc.ServerStream
	received *atomic.Int64
}

func (c *countedStream) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.received.Add(1)
	}
	return err
}
