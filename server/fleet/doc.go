// Package fleet knows the data planes: who is connected, which revision each
// acknowledged, what it refused and whose change that was.
//
// A [Registry] is told what happens on the sessions of the xDS server and what
// the publisher published; it keeps, per group and data plane, the acknowledged
// revision of each xDS type. A data plane is
//
//	SYNCED   everything of the group's current revision was acknowledged
//	STALE    connected, but something newer is on its way
//	NACKED   the newest content of at least one resource was refused
//	OFFLINE  not connected; remembered with what it last acknowledged
//
// Its revision is the least of its types': the newest one that it holds whole,
// quarantined resources apart. An event costs O(1) (the number of types is
// bounded), whatever the number of data planes; lists and waits cost O(group).
//
// The registry starts no goroutine and has no clock but the injected one.
// Events take one short lock per group and never block on a reader.
package fleet
