package gateway

import (
	"net/http"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// redirect is a compiled RedirectAction.
type redirect struct {
	status       int
	scheme, host string
	port         uint32
	path         string
	hasPath      bool
	stripQuery   bool
}

func newRedirect(m *routev3.RedirectAction) *redirect {
	r := &redirect{
		host: m.GetHostRedirect(), port: m.GetPortRedirect(), path: m.GetPathRedirect(),
		stripQuery: m.GetStripQuery(),
	}
	_, r.hasPath = m.GetPathRewriteSpecifier().(*routev3.RedirectAction_PathRedirect)
	if m.GetHttpsRedirect() {
		r.scheme = "https"
	}
	switch m.GetResponseCode() {
	case routev3.RedirectAction_FOUND:
		r.status = http.StatusFound
	case routev3.RedirectAction_SEE_OTHER:
		r.status = http.StatusSeeOther
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		r.status = http.StatusTemporaryRedirect
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		r.status = http.StatusPermanentRedirect
	default:
		r.status = http.StatusMovedPermanently
	}
	return r
}

// reply returns the redirection of a request.
func (r *redirect) reply(x *exchange) *reply {
	scheme, host, path := orText(r.scheme, x.scheme), orText(r.host, x.host), x.fullPath()
	if r.port != 0 {
		host += ":" + strconv.FormatUint(uint64(r.port), 10)
	}
	switch {
	case r.hasPath:
		path = r.path
		if x.hasQuery && !r.stripQuery && !strings.Contains(path, "?") {
			path += "?" + x.query
		}
	case r.stripQuery:
		path = x.path
	}
	return &reply{status: r.status, header: http.Header{"Location": {scheme + "://" + host + path}}}
}

// dataOf returns the inline content of a DataSource.
func dataOf(d *corev3.DataSource) string {
	if s := d.GetInlineString(); s != "" {
		return s
	}
	return string(d.GetInlineBytes())
}
