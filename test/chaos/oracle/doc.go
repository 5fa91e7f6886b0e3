// Package oracle watches a cluster from outside: it records every call of the
// admin API and every configuration that a data plane receives, and says where
// they break a promise. It knows nothing of how the cluster works inside.
//
// A group is a register of a few slots. Each transaction puts one value, never
// used before, into one slot; the value is compiled into several types of xDS
// resources, so that a mixture of two revisions shows.
package oracle
