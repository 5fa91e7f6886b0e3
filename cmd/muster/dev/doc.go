// Package dev runs a whole muster on one machine, in one process: a one-node
// server with its store on disk, embedded gateways, an echo upstream, and a
// group `default` that joins them.
//
// The parts are those of production, wired as an operator would: the group is
// made over the admin API, the gateways subscribe over xDS. Everything listens
// on loopback.
package dev
