// Package e2e proves muster end to end: real muster processes, real Envoys and
// embedded gateways, real requests. Its tests have the build tag e2e and are
// run by `make e2e`, which installs the Envoys; the packages below this one are
// what they are made of, and have tests of their own that need only Go.
package e2e
