package raftstore

import (
	"net"
	"syscall"
	"time"
)

const (
	tcpUserTimeout = 0x12 // TCP_USER_TIMEOUT, absent from package syscall
	unackedLimit   = 4 * time.Second
)

// tuneConn makes a connection whose peer has gone silent fail within seconds,
// while one that is merely slow goes on: a deadline on the whole exchange
// could not tell the two apart.
func tuneConn(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3})
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unackedLimit/time.Millisecond))
	})
}
