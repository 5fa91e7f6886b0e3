// Package bootstrap writes the files with which data planes start: where their
// servers are, which group they belong to, and who they are.
//
// The package is pure: a configuration in, bytes out.
package bootstrap
