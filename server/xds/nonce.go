package xds

// Nonces are the numbers of a stream's responses: unique in the stream, and
// never those of another stream of the same connection by accident only. They
// say nothing; a client's first request may bring one of an earlier stream.

// appendNonce appends a nonce: the number in base 36.
func appendNonce(dst []byte, n uint64) []byte {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var buf [13]byte
	i := len(buf)
	for {
		i--
		buf[i] = digits[n%36]
		if n /= 36; n == 0 {
			return append(dst, buf[i:]...)
		}
	}
}

// parseNonce is the inverse of appendNonce; ok is false for anything else.
func parseNonce(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 12 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			n = n*36 + uint64(c-'0')
		case c >= 'a' && c <= 'z':
			n = n*36 + uint64(c-'a') + 10
		default:
			return 0, false
		}
	}
	return n, true
}
