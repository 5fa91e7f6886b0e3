package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// The listeners that the gateway has.
const (
	listenerHTTP  = "http"
	listenerHTTPS = "https"
)

// listenerConfig is a compiled Listener. It is immutable.
type listenerConfig struct {
	name     string
	exact    map[string]*filterChain // by SNI
	wildcard map[string]*filterChain // by the suffix behind `*`, with its dot
	fallback *filterChain            // for any other SNI; nil closes the connection
}

// filterChain is a compiled FilterChain with its connection manager.
type filterChain struct {
	name      string
	tls       *downstreamTLS // nil for plaintext
	stateKeys []string       // under which the peer's address is known
	nameKeys  []string       // under which the chain's name is
	filters   []chainFilter
	router    *router

	routeConfigName string

	stripPort, normalizePath, mergeSlashes bool
	useRemoteAddress                       bool
	generateRequestID                      bool
	early                                  mutations
	upgrades                               map[string]bool // by lower-case type: on unless a route says otherwise
	streamIdle                             time.Duration
}

// downstreamTLS is a compiled DownstreamTlsContext.
type downstreamTLS struct {
	needs   *tlsNeeds
	require bool // a client certificate
	cached  atomic.Pointer[tlsConfigAt]
}

// tlsConfigAt is a tls.Config made of a table's secrets, kept so that sessions can
// be resumed.
type tlsConfigAt struct {
	secrets []*secret
	config  *tls.Config
}

// Envoy's default for stream_idle_timeout.
const defaultStreamIdle = 5 * time.Minute

func (f *filterChain) filterNamed(name string) httpFilter {
	if f == nil {
		return nil
	}
	for _, cf := range f.filters {
		if cf.name == name {
			return cf.filter
		}
	}
	return nil
}

func (g *Gateway) decodeListener(body *anypb.Any, previous *listenerConfig) (*listenerConfig, error) {
	m := &listenerv3.Listener{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	if m.GetName() != listenerHTTP && m.GetName() != listenerHTTPS {
		return nil, fmt.Errorf("a listener of this name is not supported; there are %q and %q", listenerHTTP, listenerHTTPS)
	}
	for _, lf := range m.GetListenerFilters() {
		if !lf.GetTypedConfig().MessageIs((*tlsinspectorv3.TlsInspector)(nil)) {
			return nil, fmt.Errorf("listener filter %q is not supported", lf.GetName())
		}
	}
	l := &listenerConfig{name: m.GetName(), exact: map[string]*filterChain{}, wildcard: map[string]*filterChain{}}
	built := map[string]*filterChain{} // equal filters are compiled once
	for i, fc := range m.GetFilterChains() {
		chain, err := g.newFilterChain(fc, previous.anyChain(), built)
		if err == nil {
			err = l.add(fc.GetFilterChainMatch().GetServerNames(), chain)
		}
		if err != nil {
			return nil, fmt.Errorf("filter_chains[%d] %q: %w", i, fc.GetName(), err)
		}
	}
	return l, l.validate()
}

func (l *listenerConfig) validate() error {
	for _, c := range l.chains() {
		if (c.tls != nil) != (l.name == listenerHTTPS) {
			return fmt.Errorf("listener %q mixes up plaintext and TLS", l.name)
		}
	}
	return nil
}

func (l *listenerConfig) chains() []*filterChain {
	var out []*filterChain
	for _, c := range l.exact {
		out = append(out, c)
	}
	for _, c := range l.wildcard {
		out = append(out, c)
	}
	if l.fallback != nil {
		out = append(out, l.fallback)
	}
	return out
}

// anyChain returns one chain: the filters are the same in all.
func (l *listenerConfig) anyChain() *filterChain {
	if l == nil {
		return nil
	}
	if chains := l.chains(); len(chains) > 0 {
		return chains[0]
	}
	return nil
}

// add puts a chain where connections find it.
func (l *listenerConfig) add(names []string, chain *filterChain) error {
	if len(names) == 0 {
		if l.fallback != nil {
			return errors.New("another filter chain matches the same connections")
		}
		l.fallback = chain
		return nil
	}
	for _, name := range names {
		where, key := l.exact, strings.ToLower(name)
		if strings.HasPrefix(key, "*.") {
			where, key = l.wildcard, key[1:]
		} else if strings.Contains(key, "*") {
			return fmt.Errorf("server name %q is invalid", name)
		}
		if where[key] != nil {
			return fmt.Errorf("server name %q stands in another filter chain too", name)
		}
		where[key] = chain
	}
	return nil
}

// find returns the chain for an SNI: exactly, then by the longest wildcard.
func (l *listenerConfig) find(sni string) *filterChain {
	sni = strings.ToLower(sni)
	if c, ok := l.exact[sni]; ok {
		return c
	}
	for rest := sni; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return l.fallback
		}
		if c, ok := l.wildcard[rest[dot:]]; ok {
			return c
		}
		rest = rest[dot+1:]
	}
}

func (g *Gateway) newFilterChain(m *listenerv3.FilterChain, previous *filterChain, built map[string]*filterChain) (*filterChain, error) {
	key := fingerprintOf(&listenerv3.FilterChain{Filters: m.GetFilters()})
	shared, ok := built[key]
	if !ok {
		var err error
		if shared, err = g.newNetworkFilters(m.GetFilters(), previous); err != nil {
			return nil, err
		}
		built[key] = shared
	}
	chain := *shared
	chain.name = m.GetName()
	if m.GetTransportSocket() == nil {
		return &chain, nil
	}
	d := &tlsv3.DownstreamTlsContext{}
	if err := m.GetTransportSocket().GetTypedConfig().UnmarshalTo(d); err != nil {
		return nil, fmt.Errorf("transport_socket: %w", err)
	}
	needs, err := newTLSNeeds(d.GetCommonTlsContext())
	if err != nil {
		return nil, fmt.Errorf("transport_socket: %w", err)
	}
	chain.tls = &downstreamTLS{needs: needs, require: d.GetRequireClientCertificate().GetValue()}
	return &chain, nil
}

func (g *Gateway) newNetworkFilters(list []*listenerv3.Filter, previous *filterChain) (*filterChain, error) {
	c := &filterChain{}
	for i, f := range list {
		m, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", f.GetName(), err)
		}
		switch m := m.(type) {
		case *setfilterstatev3.Config:
			err = c.setFilterState(m)
		case *hcmv3.HttpConnectionManager:
			if i != len(list)-1 {
				err = errors.New("it has to be the last filter")
				break
			}
			err = g.setConnectionManager(c, m, previous)
		default:
			err = fmt.Errorf("%s is not supported", f.GetTypedConfig().MessageName())
		}
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", f.GetName(), err)
		}
	}
	if c.router == nil {
		return nil, errors.New("it has no HTTP connection manager")
	}
	return c, nil
}

// setFilterState takes what set_filter_state is used for: the peer's address and the
// chain's name, each under a key.
func (c *filterChain) setFilterState(m *setfilterstatev3.Config) error {
	for _, v := range m.GetOnNewConnection() {
		switch v.GetFactoryKey() + " " + v.GetFormatString().GetTextFormatSource().GetInlineString() {
		case "envoy.network.ip %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":
			c.stateKeys = append(c.stateKeys, v.GetObjectKey())
		case "envoy.string %FILTER_CHAIN_NAME%":
			c.nameKeys = append(c.nameKeys, v.GetObjectKey())
		default:
			return fmt.Errorf("on_new_connection %q: only the remote address as envoy.network.ip and the filter chain's name as envoy.string are supported", v.GetObjectKey())
		}
	}
	return nil
}

// textState returns the text that set_filter_state wrote under a key.
func (c *filterChain) textState(key string) (string, bool) {
	return c.name, slices.Contains(c.nameKeys, key)
}

func (g *Gateway) setConnectionManager(c *filterChain, m *hcmv3.HttpConnectionManager, previous *filterChain) error {
	if m.GetServerHeaderTransformation() != hcmv3.HttpConnectionManager_PASS_THROUGH {
		return fmt.Errorf("server_header_transformation %s is not supported", m.GetServerHeaderTransformation())
	}
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmv3.HttpConnectionManager_KEEP_UNCHANGED, hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT:
	default:
		return fmt.Errorf("path_with_escaped_slashes_action %s is not supported", m.GetPathWithEscapedSlashesAction())
	}
	c.stripPort = m.GetStripAnyHostPort()
	c.normalizePath, c.mergeSlashes = m.GetNormalizePath().GetValue(), m.GetMergeSlashes()
	c.useRemoteAddress = m.GetUseRemoteAddress().GetValue()
	c.generateRequestID = m.GetGenerateRequestId() == nil || m.GetGenerateRequestId().GetValue()
	c.streamIdle = defaultStreamIdle
	if m.GetStreamIdleTimeout() != nil {
		c.streamIdle = m.GetStreamIdleTimeout().AsDuration()
	}
	for _, u := range m.GetUpgradeConfigs() {
		if c.upgrades == nil {
			c.upgrades = map[string]bool{}
		}
		c.upgrades[strings.ToLower(u.GetUpgradeType())] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	for _, e := range m.GetEarlyHeaderMutationExtensions() {
		hm := &headermutationv3.HeaderMutation{}
		if err := e.GetTypedConfig().UnmarshalTo(hm); err != nil {
			return fmt.Errorf("early_header_mutation_extensions %q: %w", e.GetName(), err)
		}
		early, err := newMutations(hm.GetMutations())
		if err != nil {
			return fmt.Errorf("early_header_mutation_extensions %q: %w", e.GetName(), err)
		}
		c.early = append(c.early, early...)
	}
	var err error
	if c.filters, c.router, err = g.newHTTPFilters(m.GetHttpFilters(), previous); err != nil {
		return err
	}
	return c.setRoutes(m)
}

func (c *filterChain) setRoutes(m *hcmv3.HttpConnectionManager) error {
	if m.GetRds().GetConfigSource().GetAds() == nil {
		return errors.New("only rds by ads is supported")
	}
	c.routeConfigName = m.GetRds().GetRouteConfigName()
	return nil
}

// configFor returns the TLS configuration of a chain by the secrets of a table.
func (d *downstreamTLS) configFor(t *table) (*tls.Config, error) {
	var secrets []*secret
	for _, name := range append([]string{d.needs.validationSecret}, d.needs.certificateSecrets...) {
		s, _ := t.secrets.Get([]byte(name)) // nil counts as a state too
		secrets = append(secrets, s)
	}
	if c := d.cached.Load(); c != nil && equalSecrets(c.secrets, secrets) {
		return c.config, nil
	}
	certificates, err := d.needs.certificatesIn(t)
	if err != nil {
		return nil, err
	}
	validation, err := d.needs.validationIn(t)
	if err != nil {
		return nil, err
	}
	if len(certificates) == 0 {
		return nil, errors.New("the filter chain has no certificate")
	}
	cfg := &tls.Config{
		MinVersion: d.needs.minVersion, MaxVersion: d.needs.maxVersion,
		Certificates: certificates, NextProtos: d.needs.alpn,
	}
	if validation != nil || d.require {
		cfg.ClientAuth = tls.RequestClientCert
		if d.require {
			cfg.ClientAuth = tls.RequireAnyClientCert
		}
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 && !d.require {
				return nil
			}
			return validation.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
		}
	}
	d.cached.Store(&tlsConfigAt{secrets: secrets, config: cfg})
	return cfg, nil
}

func equalSecrets(a, b []*secret) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
