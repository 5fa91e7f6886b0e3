package resource

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// mask stands in for a secret.
const mask = "***"

// secretFields are fields that hold secrets.
var secretFields = map[protoreflect.FullName]bool{
	"muster.v1.Ssl.key":                true,
	"muster.v1.Ssl.keys":               true,
	"muster.v1.UpstreamTls.client_key": true,
	// Raw xDS: header values are credentials often enough.
	"envoy.config.core.v3.HeaderValue.value":     true,
	"envoy.config.core.v3.HeaderValue.raw_value": true,
}

// guardedFields hold values that may be secrets, which excerpts never show.
var guardedFields = map[protoreflect.FullName]bool{
	"muster.v1.ActiveCheck.req_headers": true,
}

// sensitiveOption is the number of the field option `udpa.annotations.sensitive`,
// with which Envoy marks its secrets.
const sensitiveOption = 76569463

// isSecretField says whether a message's field is a secret, whatever it holds.
func isSecretField(fd protoreflect.FieldDescriptor) bool {
	if secretFields[fd.FullName()] {
		return true
	}
	if fd.ParentFile().Package() == "muster.v1" {
		return false
	}
	if secretName(string(fd.Name())) {
		return true
	}
	options := fd.Options().ProtoReflect()
	if !options.IsValid() {
		return false
	}
	sensitive := false
	options.Range(func(option protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if option.Number() == sensitiveOption && option.Kind() == protoreflect.BoolKind {
			sensitive = value.Bool()
		}
		return !sensitive
	})
	return sensitive
}

// secretRule decides about the leaves of free-form objects: plugin configurations.
type secretRule struct {
	// auth is set for an auth plugin's configuration on a consumer or credential,
	// where everything is secret that is not known to be public.
	auth bool
	// all is set below a secret name.
	all bool
	// guarded is set in plugin configurations, whose fields this package does not
	// know: a misspelt secret looks like anything else. public is set below a name
	// that is known to be none.
	guarded, public bool
	// owner is set in the plugins of consumers and credentials: no name is known
	// to be public there.
	owner bool
}

// pluginSecrets is the rule for a plugin's configuration in a message.
func pluginSecrets(parent protoreflect.FullName, plugin string) secretRule {
	owner := parent == "muster.v1.Consumer" || parent == "muster.v1.Credential"
	return secretRule{auth: owner && (strings.HasSuffix(plugin, "-auth") || parent == "muster.v1.Credential"), guarded: true, owner: owner}
}

// publicAuthFields are what an auth plugin's credential holds besides secrets.
var publicAuthFields = map[string]bool{
	"username": true, "algorithm": true, "exp": true, "_meta": true,
	"public_key": true, "user_dn": true, "signed_headers": true, "clock_skew": true,
}

// below is the rule for what the object holds under a key.
func (r secretRule) below(key string) secretRule {
	if r.auth && !publicAuthFields[key] || secretName(key) {
		r.all = true
	}
	r.public = publicPluginFields[key] && !r.owner
	return r
}

// shows says whether an excerpt may show a scalar under the rule. That is
// stricter than hides: a text that is being refused may have its secrets in
// fields that do not exist.
func (r secretRule) shows(kind nodeKind, text string) bool {
	free := !r.guarded || r.public && !strings.ContainsAny(text, "@:") || kind == boolNode || kind == nullNode
	return free && !r.hides(kind, text)
}

// publicPluginFields are fields of plugins that hold no secrets.
var publicPluginFields = map[string]bool{
	"count": true, "time_window": true, "key": true, "key_type": true, "policy": true, "window_type": true,
	"rejected_code": true, "rejected_msg": true, "group": true, "rate": true, "burst": true, "conn": true, "default_conn_delay": true,
	"whitelist": true, "blacklist": true, "message": true, "response_code": true, "type": true, "methods": true,
	"allow_origins": true, "allow_methods": true, "allow_headers": true, "expose_headers": true, "max_age": true, "allow_origins_by_regex": true,
	"uri": true, "regex_uri": true, "host": true, "method": true, "scheme": true, "status_code": true, "ret_code": true,
	"header": true, "query": true, "anonymous_consumer": true, "weight": true, "username": true, "algorithm": true,
}

// hides says whether a scalar under the rule must not be shown.
func (r secretRule) hides(kind nodeKind, text string) bool {
	switch kind {
	case stringNode:
		return r.all || secretText(text)
	case numberNode:
		return r.all
	}
	return false
}

// shownSegment is how a path in a problem names a key of the text.
func shownSegment(key string) string {
	if !isName(key) {
		return `["` + mask + `"]`
	}
	return nameSegment(key)
}

// swallows says whether a text looks as if it holds fields of its own: in a
// broken text a forgotten quote or bracket makes one value of several.
func swallows(text string) bool {
	return strings.Contains(text, `":`) || strings.Contains(text, ": ") || strings.ContainsAny(text, "\r\n")
}

// isName says whether a key looks like a name: of a field, plugin, label, header
// or node. In a broken text a key may be anything, also a value that came to
// stand where a key belongs.
func isName(key string) bool {
	if len(key) == 0 || len(key) > 64 {
		return false
	}
	return !strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:*@[]<", r))
	})
}

// secretWords mark the names of fields, headers and parameters that hold secrets.
var secretWords = []string{
	"password", "passwd", "passphrase", "secret", "token", "private_key", "privatekey", "credential",
	"apikey", "api_key", "access_key", "auth_header", "authorization", "client_key", "inline_string", "inline_bytes",
}

// publicSuffixes mark names that hold one of these words and yet no secret.
var publicSuffixes = []string{"_endpoint", "_method", "_name", "_type", "_ttl", "_timeout", "_sds_secret_config", "_sds_secret_configs"}

// secretName guesses from a name whether its value is a secret.
func secretName(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	for _, suffix := range publicSuffixes {
		if strings.HasSuffix(name, suffix) {
			return false
		}
	}
	for _, word := range secretWords {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// secretText finds secrets inside values that are not secrets themselves: a
// header with its value, a URL with a password, a private key.
func secretText(text string) bool {
	if strings.Contains(text, "PRIVATE KEY-----") {
		return true
	}
	if _, rest, found := strings.Cut(text, "//"); found {
		authority, _, _ := strings.Cut(rest, "/")
		if strings.Contains(authority, "@") {
			return true
		}
	}
	if name, _, found := strings.Cut(text, ":"); found {
		return !strings.ContainsAny(name, " /{}[]()") && secretName(name)
	}
	return false
}
