package resource

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Validator judges resources in canonical form. The zero Validator knows no
// plugins (it checks none) and no time (it takes every certificate for current).
// It may be used concurrently.
type Validator struct {
	// Plugins checks plugin configurations. Nil checks none.
	Plugins PluginSet
	// Now is the time at which certificates must be valid. Zero checks none, so
	// that a replayed log is judged the same at any time.
	Now time.Time
	// IDs lists the ids of a kind, from which to suggest when a reference names
	// none of them. Nil suggests nothing.
	IDs func(musterv1.Kind) []string
}

// Validate judges one resource with the zero Validator.
func Validate(r *musterv1.Resource) Problems { return Validator{}.Resource(r) }

// Resource returns everything that is wrong with the resource by itself. Paths
// are relative to it.
func (v Validator) Resource(r *musterv1.Resource) Problems {
	c := &checker{validator: v, object: KeyOf(r)}
	m := body(r)
	if m == nil {
		c.add("", CodeRequired, "the resource has no kind", "set one of the fields of Resource")
		return c.problems
	}
	if size := proto.Size(r); size > maxObjectSize {
		c.add("", CodeTooLarge, fmt.Sprintf("the object has %d bytes; at most %d are allowed", size, maxObjectSize), "split it")
		return c.problems
	}
	if !c.wellFormed("", m, 0) {
		return c.problems
	}
	switch kind := r.GetKind().(type) {
	case *musterv1.Resource_Service:
		c.service(kind.Service)
	case *musterv1.Resource_Route:
		c.route(kind.Route)
	case *musterv1.Resource_StreamRoute:
		c.streamRoute(kind.StreamRoute)
	case *musterv1.Resource_Consumer:
		c.consumer(kind.Consumer)
	case *musterv1.Resource_Credential:
		c.credential(kind.Credential)
	case *musterv1.Resource_Ssl:
		c.ssl(kind.Ssl)
	case *musterv1.Resource_GlobalRule:
		c.globalRule(kind.GlobalRule)
	case *musterv1.Resource_PluginMetadata:
		c.metadata(kind.PluginMetadata)
	case *musterv1.Resource_XdsResource:
		c.xdsResource(kind.XdsResource)
	}
	return c.problems
}

// checker gathers the problems of one object.
type checker struct {
	validator Validator
	object    Key
	problems  Problems
}

func (c *checker) add(path, code, message, hint string) {
	c.problems = append(c.problems, Problem{Object: c.object, Path: shownPath(path), Code: code, Message: message, Hint: hint})
}

// wellFormed checks what every message must hold, wherever it came from: no
// fields that this program does not know, numbers that JSON can write, a bounded
// depth. It stops at the first problem, which makes the rest moot.
func (c *checker) wellFormed(path string, m protoreflect.Message, depth int) bool {
	switch {
	case depth > maxDepth:
		c.add("", CodeTooLarge, fmt.Sprintf("lists and objects nest deeper than %d levels", maxDepth), "")
		return false
	case len(m.GetUnknown()) > 0:
		c.add(path, CodeUnknown, "the message holds fields that this server does not know", "the client is newer than the server: upgrade the server")
		return false
	}
	if value, ok := m.Interface().(*structpb.Value); ok {
		number, isNumber := value.GetKind().(*structpb.Value_NumberValue)
		if isNumber && (math.IsNaN(number.NumberValue) || math.IsInf(number.NumberValue, 0)) {
			c.add(path, CodeInvalid, "infinity and NaN are not numbers here", "")
			return false
		}
	}
	ok := true
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		at := path
		if fd.ParentFile().Package() == "muster.v1" {
			at = joinPath(path, nameSegment(string(fd.Name())))
		}
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			value.Map().Range(func(key protoreflect.MapKey, entry protoreflect.Value) bool {
				ok = c.wellFormed(joinPath(at, nameSegment(key.String())), entry.Message(), depth+1)
				return ok
			})
		case fd.IsList() && fd.Message() != nil:
			for i := range value.List().Len() {
				if ok = c.wellFormed(joinPath(at, indexSegment(i)), value.List().Get(i).Message(), depth+1); !ok {
					break
				}
			}
		case !fd.IsMap() && !fd.IsList() && fd.Message() != nil:
			ok = c.wellFormed(at, value.Message(), depth+1)
		case fd.Kind() == protoreflect.DoubleKind && !fd.IsList():
			if number := value.Float(); math.IsNaN(number) || math.IsInf(number, 0) {
				c.add(at, CodeInvalid, "infinity and NaN are not numbers here", "")
				ok = false
			}
		}
		return ok
	})
	return ok
}

const (
	// maxName bounds names and descriptions, in bytes, as adc does.
	maxName = 64 << 10
	// maxPath bounds URIs and path prefixes, in bytes.
	maxPath = 4 << 10
)

var (
	idPattern       = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,256}$`)
	usernamePattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,256}$`)
	tokenPattern    = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
)

// id checks the id of an object, or of one that is referred to.
func (c *checker) id(path, id string) {
	switch {
	case id == "":
		c.add(path, CodeRequired, "the object has no id", "")
	case id == "." || id == ".." || !idPattern.MatchString(id):
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not an id", quote(id)), "an id is 1 to 256 letters, digits, `-`, `_` and `.`")
	}
}

// text checks a name or description.
func (c *checker) text(path, value string) {
	if len(value) > maxName {
		c.add(path, CodeTooLarge, fmt.Sprintf("the text has %d bytes; at most %d are allowed", len(value), maxName), "")
	}
	if strings.ContainsFunc(value, IsUnprintable) {
		c.add(path, CodeInvalid, "the text holds a control character", "texts are shown on terminals, which would obey it")
	}
}

// IsUnprintable tells the control characters that a text of several lines must
// not hold: a terminal that shows it would obey them.
func IsUnprintable(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t'
}

func (c *checker) labels(labels map[string]string) {
	for _, key := range sortedKeys(labels) {
		path := FieldPath("labels", key)
		if key == "" || len(key) > 256 || strings.ContainsFunc(key, unicode.IsControl) {
			c.add(path, CodeInvalid, "a label's name must have 1 to 256 bytes, without control characters", "")
		}
		c.text(path, labels[key])
	}
}

// oneOf checks a value of a closed set; empty is the default.
func (c *checker) oneOf(path, value string, allowed ...string) {
	if value == "" || slices.Contains(allowed, value) {
		return
	}
	hint := suggestion(value, allowed)
	c.add(path, CodeInvalid, fmt.Sprintf("%s is not one of %s", quote(value), strings.Join(allowed, ", ")), hint)
}

// within checks that a number is in a range, inclusively.
func (c *checker) within(path string, value, low, high float64) {
	if value < low || value > high {
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not in %s to %s", formatNumber(value), formatNumber(low), formatNumber(high)), "")
	}
}

// status checks an enabled-or-not number.
func (c *checker) status(path string, status *int32) {
	if status != nil && *status != 0 && *status != 1 {
		c.add(path, CodeInvalid, fmt.Sprintf("%d is not a status", *status), "1 is enabled, 0 disabled")
	}
}

// plugins checks an object's plugins by the plugin set.
func (c *checker) plugins(plugins map[string]*structpb.Struct, where Where) {
	for _, name := range sortedKeys(plugins) {
		c.plugin(FieldPath("plugins", name), name, where, plugins[name])
	}
}

func (c *checker) plugin(path, name string, where Where, config *structpb.Struct) {
	if c.validator.Plugins == nil {
		return
	}
	if !isName(name) {
		c.add(path, CodeUnknown, "there is no plugin of such a name", "")
		return
	}
	for _, p := range c.validator.Plugins.Check(name, where, config) {
		p.Object, p.Path = c.object, shownPath(joinPath(path, p.Path))
		c.problems = append(c.problems, p)
	}
}

// unsupported reports a field of API7's that is set and cannot be honoured.
func (c *checker) unsupported(path string, isSet bool, reason, hint string) {
	if isSet {
		c.add(path, CodeUnsupported, reason, hint)
	}
}

// quote shows a value in a message: short, on one line, in quotes. A value that
// looks as if it holds more than belongs there may hold secrets too.
func quote(value string) string {
	const most = 64
	if swallows(value) || secretText(value) {
		return `"` + mask + `"`
	}
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "") + "..."
	}
	return fmt.Sprintf("%q", value)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
