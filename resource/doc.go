// Package resource knows the objects that a gateway group holds: how they are
// named, read, written, compared and judged.
//
// Input comes in two shapes. DecodeObject reads one object as API7's Admin API
// carries it; DecodeFile reads the declarative file of API7's adc, in which
// routes nest in services and credentials in consumers. Both accept YAML and
// JSON, are strict, and report every problem they find, each with the path of
// the field at fault and, for input in text, its line and column.
//
// A decoded object is in canonical form (Normalize): every alternative spelling
// has become the one field that the messages of proto/muster/v1 have, and
// nothing that was absent has been filled in. EncodeObject gives back exactly
// what was given, which API7's tools rely on when they compare.
//
// Validator judges objects: one at a time (Resource) and in their relations
// (Group). What a plugin's configuration may hold it asks a PluginSet.
//
// The package is pure: no I/O, goroutines or clock. All functions are safe for
// concurrent use, as long as no one modifies their arguments meanwhile. Neither
// problems nor diffs ever show the value of a secret.
package resource
