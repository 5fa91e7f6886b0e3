package resource

import "strings"

// labelList returns a list of strings as the one string in which it travels,
// which is how adc sends it: its JSON.
func (d *decoder) labelList(n *node, c *cursor) (string, bool) {
	ok := true
	for i, item := range n.items {
		if item.kind != stringNode {
			d.mismatch(c.index(i, item.at), item, "a string", false)
			ok = false
			continue
		}
		item.public = true
	}
	return string(appendJSON(nil, n)), ok
}

// splitLabel is the reverse of labelList: the list that a label's value stands
// for, nil when it is an ordinary string.
func splitLabel(value string) *node {
	if !strings.HasPrefix(value, "[") || !strings.HasSuffix(value, "]") {
		return nil
	}
	list, failure := parseJSON([]byte(value))
	if failure != nil || list.kind != listNode {
		return nil
	}
	for _, item := range list.items {
		if item.kind != stringNode {
			return nil
		}
	}
	if string(appendJSON(nil, list)) != value {
		return nil
	}
	return list
}
