#!/bin/sh
# Makes what compose.yaml mounts: for each container a directory below tls/ with
# its own certificate and key, and for the servers the hashed API key, which stands
# in tls/admin.key. The authority and its key stay in tls/. Run it again to renew
# the certificates: they are taken without a restart. The containers run as user
# 65532.
set -eu
umask 077
cd "$(dirname "$0")"
dir=${1:-tls}
[ -e "$dir/ca.pem" ] || ./certificates.sh ca "$dir" example.org
[ -e "$dir/admin.key" ] || ./certificates.sh api-key "$dir" admin admin >"$dir/admin.key"

# hand NAME CERTIFICATE AS moves a certificate into a container's directory.
hand() {
	mkdir -p "$dir/$1"
	cp "$dir/ca.pem" "$dir/$1/ca.pem"
	mv "$dir/$2.key" "$dir/$1/$3.key"
	mv "$dir/$2.pem" "$dir/$1/$3.pem"
}

for id in muster-1 muster-2 muster-3; do
	./certificates.sh server "$dir" "$id" "$id" localhost 127.0.0.1
	hand "$id" "server-$id" server
	cp "$dir/api-keys.json" "$dir/$id/api-keys.json"
done
./certificates.sh dataplane "$dir" default gateway-1
hand gateway-1 dp-default-gateway-1 dp
if [ "$(id -u)" -eq 0 ]; then
	chown -R 65532:65532 "$dir"/muster-* "$dir"/gateway-1
fi
