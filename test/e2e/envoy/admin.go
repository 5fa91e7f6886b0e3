package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Admin reads an Envoy's admin interface. The zero client of net/http serves
// it; its methods are safe for concurrent use.
type Admin struct{ Addr string }

// Get returns the body of a path, or an error unless the answer is 200.
func (a Admin) Get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.Addr+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return body, fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return body, nil
}

// Ready reports whether Envoy is LIVE: it has had its first configuration.
func (a Admin) Ready(ctx context.Context) bool {
	body, err := a.Get(ctx, "/ready")
	return err == nil && strings.TrimSpace(string(body)) == "LIVE"
}

// Stats returns the counters and gauges whose names match the regular expression.
func (a Admin) Stats(ctx context.Context, filter string) (map[string]int64, error) {
	body, err := a.Get(ctx, "/stats?type=All&filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	stats := map[string]int64{}
	for lines := bufio.NewScanner(strings.NewReader(string(body))); lines.Scan(); {
		// Names hold colons too (virtual hosts, addresses); the value follows the last.
		i := strings.LastIndex(lines.Text(), ": ")
		if i < 0 {
			continue
		}
		if value, err := strconv.ParseInt(lines.Text()[i+2:], 10, 64); err == nil {
			stats[lines.Text()[:i]] = value
		}
	}
	return stats, nil
}

// Sum adds up the stats whose names match the regular expression.
func (a Admin) Sum(ctx context.Context, filter string) (int64, error) {
	stats, err := a.Stats(ctx, filter)
	var sum int64
	for _, v := range stats {
		sum += v
	}
	return sum, err
}

// Listeners returns the addresses Envoy listens on, by listener name.
func (a Admin) Listeners(ctx context.Context) (map[string]string, error) {
	body, err := a.Get(ctx, "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var out struct {
		ListenerStatuses []struct {
			Name         string `json:"name"`
			LocalAddress struct {
				SocketAddress struct {
					Address   string `json:"address"`
					PortValue int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, fmt.Errorf("/listeners: %w", err)
	}
	all := map[string]string{}
	for _, l := range out.ListenerStatuses {
		sa := l.LocalAddress.SocketAddress
		all[l.Name] = fmt.Sprintf("%s:%d", sa.Address, sa.PortValue)
	}
	return all, nil
}

// DumpedResource is one dynamic resource of /config_dump.
type DumpedResource struct {
	Type    string // of the message inside
	Name    string
	Version string
	// State is active, warming or draining.
	State string
	// Error is set when the newest content was refused.
	Error string
}

// ConfigDump returns the dynamic clusters, listeners, route configurations,
// virtual hosts, endpoints and secrets that Envoy holds.
func (a Admin) ConfigDump(ctx context.Context) ([]DumpedResource, error) {
	body, err := a.Get(ctx, "/config_dump?include_eds")
	if err != nil {
		return nil, err
	}
	var dump struct {
		Configs []json.RawMessage `json:"configs"`
	}
	if err := json.Unmarshal(body, &dump); err != nil {
		return nil, fmt.Errorf("/config_dump: %w", err)
	}
	var all []DumpedResource
	for _, raw := range dump.Configs {
		found, err := dumped(raw)
		if err != nil {
			return nil, fmt.Errorf("/config_dump: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// entry is the shape that all the dumps' entries share.
type entry struct {
	VersionInfo    string       `json:"version_info"`
	Name           string       `json:"name"`
	ActiveState    *entry       `json:"active_state"`
	WarmingState   *entry       `json:"warming_state"`
	DrainingState  *entry       `json:"draining_state"`
	ErrorState     *errorState  `json:"error_state"`
	Cluster        *named       `json:"cluster"`
	Listener       *named       `json:"listener"`
	RouteConfig    *routeConfig `json:"route_config"`
	EndpointConfig *named       `json:"endpoint_config"`
	Secret         *named       `json:"secret"`
	EcdsFilter     *named       `json:"ecds_filter"`
}

type errorState struct {
	Details string `json:"details"`
}

type named struct {
	Type        string `json:"@type"`
	Name        string `json:"name"`
	ClusterName string `json:"cluster_name"`
}

type routeConfig struct {
	named
	VirtualHosts []named `json:"virtual_hosts"`
}

func dumped(raw json.RawMessage) ([]DumpedResource, error) {
	var lists map[string]json.RawMessage
	if err := json.Unmarshal(raw, &lists); err != nil {
		return nil, err
	}
	var all []DumpedResource
	for list, content := range lists {
		state, ok := strings.CutPrefix(list, "dynamic_")
		if !ok && list != "ecds_filters" {
			continue
		}
		var entries []entry
		if err := json.Unmarshal(content, &entries); err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		kind := "active"
		if strings.Contains(state, "warming") {
			kind = "warming"
		}
		for _, e := range entries {
			all = append(all, e.resources(kind)...)
		}
	}
	return all, nil
}

func (e entry) resources(state string) []DumpedResource {
	var all []DumpedResource
	reason := ""
	if e.ErrorState != nil {
		reason = e.ErrorState.Details
	}
	for kind, sub := range map[string]*entry{"active": e.ActiveState, "warming": e.WarmingState, "draining": e.DrainingState} {
		if sub == nil {
			continue
		}
		for _, r := range sub.resources(kind) {
			r.Error = reason
			all = append(all, r)
		}
	}
	add := func(n *named) {
		if n == nil {
			return
		}
		name := n.Name
		if name == "" {
			name = n.ClusterName
		}
		all = append(all, DumpedResource{Type: n.Type, Name: name, Version: e.VersionInfo, State: state, Error: reason})
	}
	add(e.Cluster)
	add(e.Listener)
	add(e.EndpointConfig)
	add(e.Secret)
	add(e.EcdsFilter)
	if e.RouteConfig != nil {
		add(&e.RouteConfig.named)
		for _, vh := range e.RouteConfig.VirtualHosts {
			all = append(all, DumpedResource{Type: "virtual_host", Name: vh.Name, State: state})
		}
	}
	return all
}

// WaitReady polls until Envoy is LIVE.
func (a Admin) WaitReady(ctx context.Context, timeout time.Duration) error {
	return a.Until(ctx, timeout, "envoy is not LIVE", func() bool { return a.Ready(ctx) })
}

// Until polls a condition, and fails with what when it does not come true in time.
func (a Admin) Until(ctx context.Context, timeout time.Duration, what string, met func() bool) error {
	deadline := time.Now().Add(timeout)
	for !met() {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s after %v", what, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
