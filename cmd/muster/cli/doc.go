// Package cli is muster's command line: one file per noun or verb.
//
// A command reads its input, calls the admin API and writes. Data goes to
// stdout, in the form that --output names; everything said about the work
// (progress, questions, hints, errors) goes to stderr. JSON and YAML are the
// API's messages with the field names of the protos, 64-bit numbers as numbers
// and enum values without their type's prefix; the shape is stable.
//
// Run returns the exit code:
//
//	0  done
//	1  diff found a difference
//	2  usage, or invalid input
//	3  not found
//	4  conflict: another change came first, it exists, or it needs --force
//	5  not authenticated, or not allowed
//	6  the server is unavailable, has no leader or failed
//	7  a timeout
//
// A command that destroys asks on a terminal, for the name of what it is about
// to change; elsewhere it demands --yes and never hangs.
package cli
