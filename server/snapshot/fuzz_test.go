package snapshot

import "testing"

// FuzzParseVersion: what is parsed as a version of muster's is one.
func FuzzParseVersion(f *testing.F) {
	f.Add("1.2.abcdefgh")
	f.Add("18446744073709551615.1.abcdefgh")
	f.Add("01.2.abcdefgh")
	f.Fuzz(func(t *testing.T, s string) {
		v, content, ok := ParseVersion(s)
		fromBytes, contentBytes, okBytes := ParseVersion([]byte(s))
		if v != fromBytes || content != string(contentBytes) || ok != okBytes {
			t.Fatalf("%q is one thing as a string and another as bytes", s)
		}
		if !ok {
			if content != s {
				t.Fatalf("%q is all content, not %q", s, content)
			}
			return
		}
		again, rest, ok := ParseVersion(v.String() + "." + content)
		if !ok || again != v || rest != content {
			t.Fatalf("%q is %v and %q, which is %v and %q", s, v, content, again, rest)
		}
	})
}

// FuzzParseRelayName: a name that is taken apart is put together again.
func FuzzParseRelayName(f *testing.F) {
	f.Add("all|envoy.config.cluster.v3.Cluster|a|b")
	f.Add("delta|example.com/x|")
	f.Fuzz(func(t *testing.T, name string) {
		view, key, ok := ParseRelayName(name)
		if !ok {
			return
		}
		view2, key2, ok := ParseRelayName(relayName(view, key))
		if !ok || view2 != view || key2 != key {
			t.Fatalf("%q is %v %v, which is %v %v", name, view, key, view2, key2)
		}
	})
}
