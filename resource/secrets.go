package resource

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// mask stands in for a secret.
const mask = "***"

// secretFields are the fields of muster's messages that hold secrets.
var secretFields = map[protoreflect.FullName]bool{
	"muster.v1.Ssl.key":                true,
	"muster.v1.Ssl.keys":               true,
	"muster.v1.UpstreamTls.client_key": true,
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
}

// pluginSecrets is the rule for a plugin's configuration in a message.
func pluginSecrets(parent protoreflect.FullName, plugin string) secretRule {
	owner := parent == "muster.v1.Consumer" || parent == "muster.v1.Credential"
	return secretRule{auth: owner && (strings.HasSuffix(plugin, "-auth") || parent == "muster.v1.Credential")}
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
	return r
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
	if name, value, found := strings.Cut(text, ":"); found {
		if strings.HasPrefix(value, "//") {
			authority, _, _ := strings.Cut(value[2:], "/")
			return strings.Contains(authority, "@")
		}
		return !strings.ContainsAny(name, " /{}[]()") && secretName(name)
	}
	return false
}
