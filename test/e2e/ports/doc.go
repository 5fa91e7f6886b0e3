// Package ports hands out TCP ports of the loopback to processes that must be
// told theirs beforehand.
package ports
