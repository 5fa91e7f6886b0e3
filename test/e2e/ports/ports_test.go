package ports

import "testing"

func TestPortsAreFreeAndDiffer(t *testing.T) {
	seen := map[int]bool{}
	for range 50 {
		p, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		if seen[p] || !free(p) {
			t.Errorf("port %d was handed out before, or is taken", p)
		}
		seen[p] = true
	}
}

func TestOffsetFreesAllPorts(t *testing.T) {
	want := []int{7443, 7943, 9080, 9443}
	offset, err := Offset(want...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range want {
		if !free(p + offset) {
			t.Errorf("port %d is taken", p+offset)
		}
	}
}
