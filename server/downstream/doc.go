// Package downstream serves the relays that hang on a server, or on another relay:
// it tells them which groups there are, and takes in what they report of the data
// planes below them. The configuration itself comes to them by ADS, like to any
// data plane.
package downstream
