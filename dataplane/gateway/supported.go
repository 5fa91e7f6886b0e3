package gateway

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// supportedFields is what the gateway honours: per message, its fields. A message
// that is not listed, and a field that is not, is refused by name. Messages of
// google.protobuf are leaves.
const supportedFields = `
envoy.config.cluster.v3.Cluster: name type eds_cluster_config connect_timeout lb_policy load_assignment health_checks typed_extension_protocol_options dns_lookup_family outlier_detection ring_hash_lb_config least_request_lb_config common_lb_config transport_socket ignore_health_on_host_removal circuit_breakers
envoy.config.cluster.v3.Cluster.EdsClusterConfig: eds_config service_name
envoy.config.cluster.v3.Cluster.CommonLbConfig: healthy_panic_threshold
envoy.config.cluster.v3.Cluster.RingHashLbConfig: minimum_ring_size maximum_ring_size hash_function
envoy.config.cluster.v3.Cluster.LeastRequestLbConfig: choice_count active_request_bias
envoy.config.cluster.v3.OutlierDetection: consecutive_5xx consecutive_gateway_failure consecutive_local_origin_failure interval base_ejection_time max_ejection_time max_ejection_percent max_ejection_time_jitter enforcing_consecutive_5xx enforcing_consecutive_gateway_failure enforcing_consecutive_local_origin_failure enforcing_success_rate enforcing_local_origin_success_rate enforcing_failure_percentage split_external_local_origin_errors always_eject_one_host successful_active_health_check_uneject_host
envoy.config.cluster.v3.CircuitBreakers: thresholds
envoy.config.cluster.v3.CircuitBreakers.Thresholds: priority max_connections max_pending_requests max_requests max_retries
envoy.config.core.v3.HealthCheck: timeout interval unhealthy_threshold healthy_threshold http_health_check tcp_health_check no_traffic_interval no_traffic_healthy_interval unhealthy_interval
envoy.config.core.v3.HealthCheck.HttpHealthCheck: host path request_headers_to_add expected_statuses retriable_statuses method codec_client_type
envoy.config.core.v3.HealthCheck.TcpHealthCheck:
envoy.type.v3.Int64Range: start end
envoy.type.v3.Percent: value
envoy.config.endpoint.v3.ClusterLoadAssignment: cluster_name endpoints policy
envoy.config.endpoint.v3.ClusterLoadAssignment.Policy: overprovisioning_factor
envoy.config.endpoint.v3.LocalityLbEndpoints: locality lb_endpoints load_balancing_weight priority
envoy.config.core.v3.Locality: region zone sub_zone
envoy.config.endpoint.v3.LbEndpoint: endpoint health_status load_balancing_weight
envoy.config.endpoint.v3.Endpoint: address hostname health_check_config
envoy.config.endpoint.v3.Endpoint.HealthCheckConfig: port_value hostname
envoy.config.core.v3.Address: socket_address
envoy.config.core.v3.SocketAddress: protocol address port_value
envoy.config.core.v3.ConfigSource: ads resource_api_version
envoy.config.core.v3.AggregatedConfigSource:
envoy.config.core.v3.TransportSocket: name typed_config
envoy.config.core.v3.DataSource: inline_string inline_bytes filename
envoy.config.core.v3.TypedExtensionConfig: name typed_config
envoy.config.core.v3.ExtensionConfigSource: config_source type_urls default_config apply_default_config_without_warming
envoy.config.core.v3.HeaderValueOption: header append_action keep_empty_value
envoy.config.core.v3.HeaderValue: key value
envoy.config.core.v3.RuntimeFractionalPercent: default_value
envoy.type.v3.FractionalPercent: numerator denominator
envoy.type.v3.TokenBucket: max_tokens tokens_per_fill fill_interval
envoy.type.v3.HttpStatus: code
envoy.config.core.v3.CidrRange: address_prefix prefix_len
xds.core.v3.CidrRange: address_prefix prefix_len
envoy.extensions.upstreams.http.v3.HttpProtocolOptions: explicit_http_config common_http_protocol_options upstream_http_protocol_options retry_policy hash_policy outlier_detection
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.OutlierDetection: error_matcher
envoy.config.common.matcher.v3.MatchPredicate: http_response_headers_match
envoy.config.common.matcher.v3.HttpHeadersMatch: headers
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig: http_protocol_options http2_protocol_options
envoy.config.core.v3.Http1ProtocolOptions:
envoy.config.core.v3.Http2ProtocolOptions:
envoy.config.core.v3.HttpProtocolOptions: idle_timeout max_requests_per_connection
envoy.config.core.v3.UpstreamHttpProtocolOptions: auto_sni auto_san_validation
envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext: common_tls_context sni auto_host_sni
envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext: common_tls_context require_client_certificate
envoy.extensions.transport_sockets.tls.v3.CommonTlsContext: tls_params tls_certificates tls_certificate_sds_secret_configs validation_context validation_context_sds_secret_config alpn_protocols
envoy.extensions.transport_sockets.tls.v3.TlsParameters: tls_minimum_protocol_version tls_maximum_protocol_version
envoy.extensions.transport_sockets.tls.v3.TlsCertificate: certificate_chain private_key
envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig: name sds_config
envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext: trusted_ca match_typed_subject_alt_names max_verify_depth
envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher: san_type matcher
envoy.extensions.transport_sockets.tls.v3.Secret: name tls_certificate validation_context
envoy.config.listener.v3.Listener: name address filter_chains listener_filters
envoy.config.listener.v3.ListenerFilter: name typed_config
envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector:
envoy.config.listener.v3.FilterChain: name filter_chain_match filters transport_socket
envoy.config.listener.v3.FilterChainMatch: server_names transport_protocol
envoy.config.listener.v3.Filter: name typed_config
envoy.extensions.filters.network.set_filter_state.v3.Config: on_new_connection
envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue: object_key factory_key format_string
envoy.config.core.v3.SubstitutionFormatString: text_format_source
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager: stat_prefix rds http_filters server_header_transformation strip_any_host_port normalize_path merge_slashes path_with_escaped_slashes_action use_remote_address early_header_mutation_extensions upgrade_configs generate_request_id stream_idle_timeout
envoy.extensions.filters.network.http_connection_manager.v3.Rds: config_source route_config_name
envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter: name typed_config config_discovery disabled
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig: upgrade_type enabled
envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation: mutations
envoy.config.common.mutation_rules.v3.HeaderMutation: remove append
envoy.extensions.filters.http.cors.v3.Cors:
envoy.extensions.filters.http.cors.v3.CorsPolicy: allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials forward_not_matching_preflights
envoy.extensions.filters.http.rbac.v3.RBAC: rules
envoy.extensions.filters.http.rbac.v3.RBACPerRoute: rbac
envoy.config.rbac.v3.RBAC: action policies
envoy.config.rbac.v3.Policy: permissions principals
envoy.config.rbac.v3.Permission: any and_rules or_rules not_rule header
envoy.config.rbac.v3.Permission.Set: rules
envoy.config.rbac.v3.Principal: any and_ids or_ids not_id remote_ip direct_remote_ip filter_state
envoy.config.rbac.v3.Principal.Set: ids
envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth: credentials key_sources forwarding
envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute: credentials key_sources allowed_clients forwarding
envoy.extensions.filters.http.api_key_auth.v3.Credential: key client
envoy.extensions.filters.http.api_key_auth.v3.KeySource: header query cookie
envoy.extensions.filters.http.api_key_auth.v3.Forwarding: header hide_credentials
envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit: stat_prefix status token_bucket filter_enabled filter_enforced descriptors enable_x_ratelimit_headers rate_limits max_dynamic_descriptors always_consume_default_token_bucket
envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor: entries token_bucket
envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry: key value
envoy.config.route.v3.RateLimit: actions
envoy.config.route.v3.RateLimit.Action: generic_key remote_address request_headers header_value_match
envoy.config.route.v3.RateLimit.Action.GenericKey: descriptor_key descriptor_value
envoy.config.route.v3.RateLimit.Action.RemoteAddress:
envoy.config.route.v3.RateLimit.Action.RequestHeaders: header_name descriptor_key skip_if_absent
envoy.config.route.v3.RateLimit.Action.HeaderValueMatch: descriptor_key descriptor_value expect_match headers
envoy.extensions.filters.http.header_mutation.v3.HeaderMutation: mutations
envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute: mutations
envoy.extensions.filters.http.header_mutation.v3.Mutations: request_mutations response_mutations query_parameter_mutations
envoy.config.core.v3.KeyValueMutation: remove
envoy.extensions.common.matching.v3.ExtensionWithMatcher: extension_config xds_matcher
xds.type.matcher.v3.Matcher: matcher_list matcher_tree on_no_match
xds.type.matcher.v3.Matcher.OnMatch: matcher action
xds.type.matcher.v3.Matcher.MatcherList: matchers
xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher: predicate on_match
xds.type.matcher.v3.Matcher.MatcherList.Predicate: single_predicate and_matcher or_matcher not_matcher
xds.type.matcher.v3.Matcher.MatcherList.Predicate.PredicateList: predicate
xds.type.matcher.v3.StringMatcher: prefix
xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate: input value_match custom_match
xds.type.matcher.v3.Matcher.MatcherTree: input prefix_match_map
xds.type.matcher.v3.Matcher.MatcherTree.MatchMap: map
xds.core.v3.TypedExtensionConfig: name typed_config
envoy.type.matcher.v3.HttpRequestHeaderMatchInput: header_name
envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing: threshold modulo
envoy.extensions.filters.http.composite.v3.Composite:
envoy.extensions.filters.http.composite.v3.ExecuteFilterAction: typed_config dynamic_config
envoy.extensions.filters.http.composite.v3.DynamicConfig: name config_discovery
envoy.extensions.filters.http.router.v3.Router: suppress_envoy_headers
envoy.config.route.v3.RouteConfiguration: name virtual_hosts vhds vhost_header typed_per_filter_config request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.Vhds: config_source
envoy.config.route.v3.FilterConfig: config disabled
envoy.config.route.v3.VirtualHost: name domains routes typed_per_filter_config request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.Route: name match route redirect direct_response typed_per_filter_config request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.RouteMatch: prefix path safe_regex path_separated_prefix case_sensitive headers query_parameters cookies filter_state
envoy.config.route.v3.HeaderMatcher: name present_match string_match invert_match treat_missing_header_as_empty
envoy.config.route.v3.QueryParameterMatcher: name string_match present_match
envoy.config.route.v3.CookieMatcher: name string_match invert_match
envoy.type.matcher.v3.FilterStateMatcher: key address_match string_match
envoy.type.matcher.v3.AddressMatcher: ranges invert_match
envoy.type.matcher.v3.StringMatcher: exact prefix suffix safe_regex contains ignore_case
envoy.type.matcher.v3.RegexMatcher: regex
envoy.type.matcher.v3.RegexMatchAndSubstitute: pattern substitution
envoy.config.route.v3.RouteAction: cluster weighted_clusters prefix_rewrite regex_rewrite host_rewrite_literal auto_host_rewrite timeout idle_timeout retry_policy rate_limits hash_policy upgrade_configs
envoy.config.route.v3.RouteAction.UpgradeConfig: upgrade_type enabled
envoy.config.route.v3.RouteAction.HashPolicy: header cookie connection_properties query_parameter terminal
envoy.config.route.v3.RouteAction.HashPolicy.Header: header_name regex_rewrite
envoy.config.route.v3.RouteAction.HashPolicy.Cookie: name
envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties: source_ip
envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter: name
envoy.config.route.v3.WeightedCluster: clusters
envoy.config.route.v3.WeightedCluster.ClusterWeight: name weight request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.RetryPolicy: retry_on num_retries per_try_timeout retriable_status_codes retry_back_off retry_host_predicate host_selection_retry_max_attempts
envoy.config.route.v3.RetryPolicy.RetryBackOff: base_interval max_interval
envoy.config.route.v3.RetryPolicy.RetryHostPredicate: name typed_config
envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate:
envoy.config.route.v3.DirectResponseAction: status body
envoy.config.route.v3.RedirectAction: https_redirect host_redirect port_redirect path_redirect response_code strip_query
`

// checker finds what a message holds beyond supportedFields.
type checker struct {
	fields map[protoreflect.FullName]map[protoreflect.Name]bool
}

func newChecker() *checker {
	c := &checker{fields: map[protoreflect.FullName]map[protoreflect.Name]bool{}}
	for line := range strings.Lines(supportedFields) {
		name, fields, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		set := map[protoreflect.Name]bool{}
		for f := range strings.FieldsSeq(fields) {
			set[protoreflect.Name(f)] = true
		}
		c.fields[protoreflect.FullName(name)] = set
	}
	return c
}

// maxFaults bounds how many faults of one resource are told.
const maxFaults = 10

// decode unpacks an Any into m and refuses what the gateway does not honour.
func (c *checker) decode(a *anypb.Any, m proto.Message) error {
	if err := a.UnmarshalTo(m); err != nil {
		return err
	}
	return c.check(m)
}

// check returns an error that names every field that is not supported.
func (c *checker) check(m proto.Message) error {
	var faults []error
	c.walk(m.ProtoReflect(), "", &faults)
	return errors.Join(faults...)
}

func (c *checker) walk(m protoreflect.Message, path string, faults *[]error) {
	d := m.Descriptor()
	if d.ParentFile().Package() == "google.protobuf" {
		if a, ok := m.Interface().(*anypb.Any); ok && len(a.GetTypeUrl()) > 0 {
			c.walkAny(a, path, faults)
		}
		return
	}
	fields, ok := c.fields[d.FullName()]
	if !ok {
		fault(faults, path, "%s is not supported", d.FullName())
		return
	}
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		fault(faults, path, "%s has a field that this version does not know", d.FullName())
	}
	for fd, v := range m.Range {
		at := join(path, string(fd.Name()))
		if !fields[fd.Name()] {
			fault(faults, at, "is not supported")
			continue
		}
		if fd.Message() == nil || fd.IsMap() && fd.MapValue().Message() == nil {
			continue
		}
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				c.walk(v.Message(), fmt.Sprintf("%s[%q]", at, k.String()), faults)
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				c.walk(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i), faults)
			}
		default:
			c.walk(v.Message(), at, faults)
		}
	}
}

func (c *checker) walkAny(a *anypb.Any, path string, faults *[]error) {
	name := a.MessageName()
	if _, ok := c.fields[name]; !ok {
		fault(faults, path, "%s is not supported", name)
		return
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		fault(faults, path, "%v", err)
		return
	}
	c.walk(m.ProtoReflect(), path, faults)
}

func fault(faults *[]error, path, format string, args ...any) {
	if len(*faults) >= maxFaults {
		return
	}
	msg := fmt.Sprintf(format, args...)
	if path != "" {
		msg = path + ": " + msg
	}
	*faults = append(*faults, errors.New(msg))
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
