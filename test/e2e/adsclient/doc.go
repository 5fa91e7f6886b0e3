// Package adsclient is a delta ADS client that subscribes as an Envoy does and
// counts what it is sent: messages, resources and bytes, by type. It applies
// nothing.
package adsclient
