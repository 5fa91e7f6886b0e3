// Package dataplane is the client library on which gateways are built: it
// subscribes to one gateway group of a muster control plane (or of any other
// xDS server that speaks incremental ADS), hands every change to a [Handler],
// acknowledges or refuses it, and keeps what was accepted on disk, so that the
// data plane starts and serves without a control plane.
//
// A data plane is a [Client] and a [Handler]:
//
//	client, err := dataplane.New(dataplane.Config{
//		Servers: []string{"cp-1:7943", "cp-2:7943"},
//		Group:   "prod",
//		NodeID:  "gateway-1",
//		TLS:     tlsConfig,
//		CacheDir: "/var/lib/gateway",
//		Handler: handler,
//	})
//	...
//	err = client.Run(ctx)
//
// or, where neither its state nor its status is wanted, [Subscribe] with the same
// configuration.
//
// # What a handler is given
//
// A muster server says what a revision consists of in a Manifest. The client
// collects the resources of a revision, checks the Manifest's digests, and
// calls the handler once for the whole revision ([Update.Whole]). An upstream
// that sends no Manifest is applied response by response, in the order in which
// it sends.
//
// The handler decodes, provisions, validates, swaps and then cleans up. What it
// cannot provision must not disturb what serves. It returns nil to accept the
// update, a [*Refused] to accept all of it but the named resources, which keep
// their last good version, or another error to refuse it altogether.
//
// # What the client promises
//
//   - The handler is never called concurrently, and never with an (epoch,
//     revision) below one that it was given before.
//   - A lost, failing, restarted or empty upstream removes nothing. Only an
//     explicit removal by the upstream does.
//   - An update is acknowledged after the handler has accepted it and after it
//     is on disk.
//   - On the way back to a server only what changed is fetched.
//
// # Without a control plane
//
// With Config.CacheDir what is in service is kept on disk: written atomically, with
// checksums and mode 0600, encrypted with Config.CacheKey. The next start serves it
// at once; what is damaged, of another group or of an older epoch is refused with a
// log line, and the one before is used. With Config.SecondHome a data plane that has
// no such file, or an older one, looks into a bucket when no server answers; see
// [SecondHome] and package dataplane/bucket.
//
// examples/dataplane is a whole gateway in one file.
package dataplane
