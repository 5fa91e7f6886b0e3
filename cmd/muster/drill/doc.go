// Package drill proves that the last known good configuration in a second home
// serves: it takes the newest there is of a group, checks it, and starts what a
// site without a control plane would start from it, on loopback, with nothing else
// to go by.
package drill
