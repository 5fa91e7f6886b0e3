#!/bin/sh
# Makes the certificates and API keys of a muster cluster with openssl, for trying
# it out and as a recipe for your own authority. Run it again to renew: servers
# take new files without a restart.
#
#   certificates.sh ca        DIR TRUST_DOMAIN     the authority, in DIR/ca.pem
#   certificates.sh server    DIR ID HOST...       DIR/server-ID.pem and .key
#   certificates.sh dataplane DIR GROUP NODE       DIR/dp-GROUP-NODE.pem and .key
#   certificates.sh api-key   DIR NAME ROLE        adds to DIR/api-keys.json, prints the key
#
# A server's certificate serves all its ports: it names the server by the URI
# spiffe://TRUST_DOMAIN/server/ID, which the other servers check, and its hosts,
# which data planes and operators check. A data plane's names its group and node.
# DAYS is how long certificates last: 30, the authority's 3650.
set -eu
umask 077

usage() {
	sed -n '5,9s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

[ $# -ge 3 ] || usage
command=$1 dir=$2
shift 2

# leaf NAME COMMON_NAME SUBJECT_ALT_NAMES
leaf() {
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" \
		-keyout "$dir/$1.key.new" -out "$dir/$1.csr" 2>/dev/null
	printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s\n' "$3" >"$dir/$1.ext"
	openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -days "${DAYS:-30}" \
		-extfile "$dir/$1.ext" -out "$dir/$1.pem.new" 2>/dev/null
	rm "$dir/$1.csr" "$dir/$1.ext"
	# Whoever follows the files sees whole ones, and takes them once they fit.
	mv "$dir/$1.key.new" "$dir/$1.key"
	mv "$dir/$1.pem.new" "$dir/$1.pem"
}

case $command in
ca)
	[ $# -eq 1 ] || usage
	mkdir -p "$dir"
	printf '%s\n' "$1" >"$dir/trust-domain"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "${DAYS:-3650}" -subj "/CN=muster $1" \
		-addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign' \
		-keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
	;;
server)
	[ $# -ge 2 ] || usage
	id=$1
	shift
	names="URI:spiffe://$(cat "$dir/trust-domain")/server/$id"
	for host; do
		case $host in
		*[!0-9.]*) names="$names,DNS:$host" ;;
		*) names="$names,IP:$host" ;;
		esac
	done
	leaf "server-$id" "$id" "$names"
	;;
dataplane)
	[ $# -eq 2 ] || usage
	leaf "dp-$1-$2" "$2" "URI:spiffe://$(cat "$dir/trust-domain")/group/$1/node/$2"
	;;
api-key)
	[ $# -eq 2 ] || usage
	key=mst-$(openssl rand -hex 24)
	hash=$(printf %s "$key" | openssl dgst -sha256 -r | cut -d' ' -f1)
	entry=$(printf '  {"name": "%s", "role": "%s", "sha256": "%s"}' "$1" "$2" "$hash")
	if [ -s "$dir/api-keys.json" ]; then
		{ sed '$d' "$dir/api-keys.json" | sed '$s/$/,/'; printf '%s\n]\n' "$entry"; } >"$dir/api-keys.json.new"
	else
		printf '[\n%s\n]\n' "$entry" >"$dir/api-keys.json.new"
	fi
	mv "$dir/api-keys.json.new" "$dir/api-keys.json"
	printf '%s\n' "$key"
	;;
*) usage ;;
esac
