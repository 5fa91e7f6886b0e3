package compile

import (
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	earlyheadersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/musterhq/muster/server/compile/plugin"
)

// Where the listeners listen unless a data plane says otherwise.
const (
	defaultAddress   = "0.0.0.0"
	defaultHTTPPort  = 9080
	defaultHTTPSPort = 9443
)

func listener(name string, port uint32) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       defaultAddress,
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}},
	}
}

// httpListener is the listener without TLS.
func httpListener(filters []*listenerv3.Filter) *listenerv3.Listener {
	l := listener(ListenerHTTP, defaultHTTPPort)
	l.FilterChains = []*listenerv3.FilterChain{{Filters: filters}}
	return l
}

// httpsListener is the listener with TLS; chains are without filters.
func httpsListener(filters []*listenerv3.Filter, chains []*listenerv3.FilterChain) *listenerv3.Listener {
	l := listener(ListenerHTTPS, defaultHTTPSPort)
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed(&tlsinspectorv3.TlsInspector{})},
	}}
	for _, c := range chains {
		c.Filters = filters
	}
	l.FilterChains = chains
	return l
}

// networkFilters are the filters of every chain of a listener. They never change, so
// that no change of a group drains connections.
func networkFilters(httpFilters []*hcmv3.HttpFilter) []*listenerv3.Filter {
	filter := func(name string, config *anypb.Any) *listenerv3.Filter {
		return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}
	}
	return []*listenerv3.Filter{
		filter("envoy.filters.network.set_filter_state", packed(connectionState())),
		filter("envoy.filters.network.http_connection_manager", packed(connectionManager(httpFilters))),
	}
}

// connectionState keeps what routes and filters match of a connection: the client's
// address, and the filter chain, which tells the certificate object.
func connectionState() *setfilterstatev3.Config {
	value := func(key, kind, format string) *filterstatev3.FilterStateValue {
		return &filterstatev3.FilterStateValue{
			Key:        &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: key},
			FactoryKey: kind,
			Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inline(format)},
			}},
		}
	}
	return &setfilterstatev3.Config{OnNewConnection: []*filterstatev3.FilterStateValue{
		value(RemoteAddrKey, "envoy.network.ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
		value(FilterChainKey, "envoy.string", "%FILTER_CHAIN_NAME%"),
	}}
}

func connectionManager(httpFilters []*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: "http",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: RouteConfig,
		}},
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		UseRemoteAddress:             wrapperspb.Bool(true),
		GenerateRequestId:            wrapperspb.Bool(false),
		ServerHeaderTransformation:   hcmv3.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:               []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(false)}},
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{{
			Name:        RouteKeyHeader,
			TypedConfig: packed(&earlyheadersv3.HeaderMutation{Mutations: []*mutationrulesv3.HeaderMutation{routeKey(), noConsumer()}}),
		}},
		HttpFilters: httpFilters,
	}
}

// routeKey writes host and path into the header by which virtual hosts are chosen.
func routeKey() *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: RouteKeyHeader, Value: "%REQ(:AUTHORITY)%%PATH(NQ:PATH)%"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

// noConsumer takes from clients the header by which auth plugins name the
// consumer: what counts, hashes or trusts it may not be told by the client.
func noConsumer() *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: plugin.ConsumerHeader}}
}

// discoveredFilter is an HTTP filter whose configuration comes by ECDS.
func discoveredFilter(name, typeURL string) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
		ConfigSource: ads(), TypeUrls: []string{typeURL},
	}}}
}

// httpFilters is what both chains have: every plugin's filter, disabled, and
// the router.
func httpFilters() []*hcmv3.HttpFilter {
	var filters []*hcmv3.HttpFilter
	for _, f := range plugin.Chain() {
		config := &anypb.Any{TypeUrl: f.TypeURL}
		if f.Config != nil {
			config = packed(f.Config())
		}
		filter := &hcmv3.HttpFilter{Name: f.Name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
		if f.Discovered {
			filter = discoveredFilter(f.Name, f.TypeURL)
		}
		filter.Disabled = true
		filters = append(filters, filter)
	}
	return append(filters, &hcmv3.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{SuppressEnvoyHeaders: true})},
	})
}

// plaintextFilters is the fixed chain of plaintext, which every group has.
func plaintextFilters() []*hcmv3.HttpFilter {
	anchor := &hcmv3.HttpFilter{Name: "key-shards", Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(plugin.KeyAnchor())}}
	return append([]*hcmv3.HttpFilter{anchor}, httpFilters()...)
}

// httpsFilters is the fixed chain of TLS, where clients may have to have certificates.
func httpsFilters() []*hcmv3.HttpFilter {
	return append([]*hcmv3.HttpFilter{discoveredFilter(ClientCertificates, clientCertificatesType)}, httpFilters()...)
}
