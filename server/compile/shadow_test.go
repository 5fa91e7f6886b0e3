package compile

import "testing"

func TestARouteThatNoRequestReachesIsLeftOut(t *testing.T) {
	v := newVirtualHost("muster/h|", nil, 0, 0, "h/*")
	place := func(literal string, exact, conditional bool) bool {
		before := len(v.body)
		v.add(&placement{pattern: pattern{literal, exact}, conditional: conditional}, []byte("route"))
		return len(v.body) > before
	}
	if !place("/a/b", true, true) || !place("/a/", false, true) || !place("/a/", false, false) {
		t.Error("a route that requests reach is missing")
	}
	if place("/a/", false, false) {
		t.Error("a second route for the same prefix is there")
	}
	v.shadow.next()
	for literal, want := range map[string]bool{"/a/": false, "/a/b": false, "/ab": true, "/": true} {
		if got := place(literal, false, true); got != want {
			t.Errorf("%s of the next level: %v, want %v", literal, got, want)
		}
	}
}
