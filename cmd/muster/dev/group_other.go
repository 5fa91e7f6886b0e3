//go:build !unix

package dev

import "os/exec"

func ownGroup(*exec.Cmd) {}

// Such a system has no way to ask a process to stop.
func interruptGroup(cmd *exec.Cmd) { killGroup(cmd) }

func killGroup(cmd *exec.Cmd) { _ = cmd.Process.Kill() }
