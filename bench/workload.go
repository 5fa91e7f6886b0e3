package main

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
)

const (
	typeURL    = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	namePrefix = "muster/api.example.com/s"
	// stampMark precedes the time at which a resource was changed, in Unix
	// nanoseconds, inside the resource: the client reads its staleness from it.
	stampMark = "x-bench-stamp:"
)

func resourceName(i int) string { return namePrefix + strconv.Itoa(i) }

// resourceIndex is the inverse of resourceName; -1 for other names.
func resourceIndex(name []byte) int {
	rest, ok := bytes.CutPrefix(name, []byte(namePrefix))
	if !ok {
		return -1
	}
	n := 0
	for _, c := range rest {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// virtualHost is one service on the one host that all share: about 300 bytes.
func virtualHost(i int, stamp time.Time) *routev3.VirtualHost {
	path := "/s" + strconv.Itoa(i)
	nanos := int64(0)
	if !stamp.IsZero() {
		nanos = stamp.UnixNano()
	}
	return &routev3.VirtualHost{
		Name:    resourceName(i),
		Domains: []string{"api.example.com" + path, "api.example.com" + path + "/*"},
		Routes: []*routev3.Route{{
			Name:  "route-" + strconv.Itoa(i),
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "service/s" + strconv.Itoa(i)},
				PrefixRewrite:    "/",
			}},
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
				Header: &corev3.HeaderValue{Key: "x-bench", Value: fmt.Sprintf("%s%020d", stampMark, nanos)},
			}},
		}},
	}
}

func virtualHostBytes(i int, stamp time.Time) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(virtualHost(i, stamp))
	if err != nil {
		panic(err) // a message built above always marshals
	}
	return b
}

// stampOf returns the change time inside a resource body; ok is false for one
// that was never changed.
func stampOf(body []byte) (time.Time, bool) {
	at := bytes.Index(body, []byte(stampMark))
	if at < 0 || len(body) < at+len(stampMark)+20 {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(string(body[at+len(stampMark):at+len(stampMark)+20]), 10, 64)
	if err != nil || n == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, n), true
}

// bodyHash is a content hash that server and client processes agree on; never 0.
// CRC-32C has an instruction of its own, so the oracle costs the client little.
func bodyHash(body []byte) uint64 {
	return uint64(crc32.Checksum(body, castagnoli))<<32 | uint64(len(body)) + 1
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
