// Package xdstypes links the messages of xDS into a program, so that an
// xds_resource can be written in JSON or YAML.
//
// Go finds a message by its type URL only if its package is linked in. These are
// the resource types themselves and the extensions that gateways use; each costs
// build time and size, so rare ones are left out. A message that is not here can
// still be given as `@bytes`, see package resource.
package xdstypes
