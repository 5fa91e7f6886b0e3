// Package pki makes the certificates of the end-to-end tests: one throwaway
// authority per test, and a leaf for every name that is asked for.
package pki
