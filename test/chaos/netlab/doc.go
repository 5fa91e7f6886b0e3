// Package netlab is the network of the fault tests: network namespaces around a
// bridge, rules that drop and lose packets, and links that are slow.
//
// Everything lives in namespaces of the process that [Enter] starts: networks,
// mounts and processes. Whatever way that process ends, the kernel takes all of
// it down.
package netlab
