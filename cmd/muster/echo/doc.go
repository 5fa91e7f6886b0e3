// Package echo is a small HTTP upstream that answers every request with what it
// received, as JSON: it makes visible what a gateway did to a request.
package echo
