// Package server runs one muster server: the replicated store, the publisher
// that compiles each group's revisions to xDS, the xDS port for data planes
// and the admin port for operators.
//
//	store (raftstore) -> Publisher (compile, snapshot) -> xds -> data planes
//	operators -> admin -> store            data planes -> xds -> fleet
package server
