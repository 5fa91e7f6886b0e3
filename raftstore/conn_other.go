//go:build !linux

package raftstore

import (
	"net"
	"time"
)

// tuneConn makes an idle connection whose peer has gone silent fail.
func tuneConn(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3})
	}
}
