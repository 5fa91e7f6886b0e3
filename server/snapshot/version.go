package snapshot

import (
	"cmp"
	"strconv"
)

// Version is a revision of a group. Versions order by epoch, then revision. The
// zero Version comes before all others and stands for a group without content.
type Version struct{ Epoch, Revision uint64 }

// Less reports whether v comes before o.
func (v Version) Less(o Version) bool { return v.Compare(o) < 0 }

// Compare is negative when v comes before o, positive when it comes after.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, o.Epoch), cmp.Compare(v.Revision, o.Revision))
}

// String returns `<epoch>.<revision>`.
func (v Version) String() string { return string(v.append(nil)) }

func (v Version) append(dst []byte) []byte {
	dst = strconv.AppendUint(dst, v.Epoch, 10)
	dst = append(dst, '.')
	return strconv.AppendUint(dst, v.Revision, 10)
}

// contentLen is the length of the content part of a resource version: 48 bits
// of SHA-256 in base64.
const contentLen = 8

// ParseVersion takes a resource version `<epoch>.<revision>.<content>` apart.
// The content part alone tells whether two versions of a name are the same
// content: servers that started at different revisions may number one content
// differently. Of a version of another form ok is false and content is all of it.
func ParseVersion[T string | []byte](version T) (v Version, content T, ok bool) {
	epoch, rest, ok := cutUint(version)
	if !ok {
		return Version{}, version, false
	}
	revision, rest, ok := cutUint(rest)
	if !ok || len(rest) < contentLen || hasDot(rest) {
		return Version{}, version, false
	}
	return Version{Epoch: epoch, Revision: revision}, rest, true
}

// cutUint reads a decimal number and the dot after it.
func cutUint[T string | []byte](s T) (n uint64, rest T, ok bool) {
	const tooBig = (1<<64 - 1) / 10 // one digit less than fits: enough
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '.' && i > 0:
			return n, s[i+1:], true
		case c < '0' || c > '9' || n >= tooBig:
			return 0, s, false
		}
		n = n*10 + uint64(c-'0')
	}
	return 0, s, false
}

func hasDot[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] == '.' {
			return true
		}
	}
	return false
}
