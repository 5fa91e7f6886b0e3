// Package dev runs a whole muster on one machine: a one-node server with its
// store on disk, embedded gateways, an echo upstream, and a group `default` that
// joins them, all in one process. With several servers each of them is a process
// of its own, the same program as `muster server`, so that one can be killed
// while the others go on; it is started again after a moment.
//
// The parts are those of production, wired as an operator would: the group is
// made over the admin API, the gateways subscribe over xDS. Everything listens
// on loopback.
//
// The servers' processes are stopped before Run returns. On Linux they end with
// this process even when it is killed; elsewhere they would go on.
package dev
