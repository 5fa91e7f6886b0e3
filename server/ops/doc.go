// Package ops is what the machines of operators ask of a server or a relay over
// plain HTTP: /healthz, /readyz and /metrics.
package ops
