package ports

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The range lies below that from which the kernel takes ports by itself, so
// that a port which was free stays free until it is used.
const (
	lowest  = 12000
	highest = 32000
)

var next = struct {
	sync.Mutex
	port int
}{port: lowest + rand.IntN(highest-lowest)}

// Free returns a port on which nothing listens. It does not return the same
// one again until the range is used up.
func Free() (int, error) {
	next.Lock()
	defer next.Unlock()
	for range highest - lowest {
		port := next.port
		if next.port++; next.port == highest {
			next.port = lowest
		}
		if free(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

// Offset returns a number such that each of the ports is free with it added.
func Offset(ports ...int) (int, error) {
	for range 1000 {
		offset := rand.IntN(40000)
		if offset < 100 {
			continue
		}
		ok := true
		for _, p := range ports {
			ok = ok && p+offset >= lowest && p+offset < highest && free(p+offset)
		}
		if ok {
			return offset, nil
		}
	}
	return 0, errors.New("no offset with all ports free")
}

func free(port int) bool {
	lis, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return lis.Close() == nil
}
