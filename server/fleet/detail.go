package fleet

import (
	"regexp"
	"strings"
)

// detailLimit bounds the text of one refusal, in bytes.
const detailLimit = 2048

var (
	// privateKey is a PEM block, or what is left of one, also with its line
	// breaks escaped.
	privateKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^"]*?-----END [A-Z ]*PRIVATE KEY-----|[^"]*)`)
	// inlineSecret is a field of the text format, or of JSON, that holds one.
	inlineSecret = regexp.MustCompile(`((?i:inline_?(?:string|bytes)|password|key|token|secret))("?\s*:\s*)"(?:[^"\\]|\\.)*"?`)
)

// cleanDetail makes what a data plane said fit to be shown to everybody who may
// see that it refused something.
func cleanDetail(detail string) string {
	detail = withoutDump(detail)
	if len(detail) > 2*detailLimit {
		// Data planes may say anything at any length: no more is looked at than can
		// be shown.
		detail = detail[:2*detailLimit]
	}
	detail = inlineSecret.ReplaceAllString(detail, `$1$2"***"`)
	detail = privateKey.ReplaceAllString(detail, "***")
	detail = strings.ToValidUTF8(strings.TrimSpace(detail), "�")
	if len(detail) > detailLimit {
		detail = strings.ToValidUTF8(detail[:detailLimit], "") + " …"
	}
	return detail
}

// withoutDump cuts out the whole refused message, which Envoy puts before the
// reason. It may hold secrets, and says nothing that is not known here.
func withoutDump(detail string) string {
	begin := strings.Index(detail, "goo.gle/debug")
	if begin < 0 {
		return detail
	}
	end := strings.LastIndex(detail, "\n: ")
	if end < begin {
		return detail[:begin]
	}
	return detail[:begin] + detail[end+len("\n: "):]
}
