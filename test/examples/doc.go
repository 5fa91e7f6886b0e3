// Package examples holds the tests of the files below examples/ that are not
// resources: what they tell an operator to run is run.
package examples
