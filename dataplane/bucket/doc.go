// Package bucket keeps objects in an S3-compatible bucket, as a second home of
// last known good configurations:
//
//	at, err := bucket.New(bucket.Config{
//		Name: "edge-config", Prefix: "muster",
//		Endpoint: "https://s3.eu-central-1.amazonaws.com",
//		CredentialsFile: "/etc/muster/s3-credentials",
//	})
//	...
//	home, err := dataplane.NewSecondHome(dataplane.SecondHomeConfig{Store: at, Key: key})
//
// Who reads needs the rights to list the bucket and to get objects below the
// prefix; who writes, to put and to delete them, too.
package bucket
