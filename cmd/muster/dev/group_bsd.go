//go:build unix && !linux

package dev

import (
	"os/exec"
	"syscall"
)

// ownGroup gives a process a group of its own, so that the terminal's Ctrl-C does
// not reach it before dev decides the order.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
