package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// What `config print` writes, with its comment signs taken away, is a
// configuration file that says the same as the defaults.
func TestEverySettingMayStandInTheFile(t *testing.T) {
	dir := t.TempDir()
	code, template, said := run(t, dir, nil, "config", "print")
	if code != 0 {
		t.Fatalf("config print: %d\n%s", code, said)
	}
	text := regexp.MustCompile(`(?m)^#([a-z_]+: )`).ReplaceAllString(template, "$1")
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	resolve := func(args ...string) map[string]resolved {
		t.Helper()
		code, out, said := run(t, dir, nil, append([]string{"config", "print", "--resolved", "-o", "json"}, args...)...)
		var list []resolved
		if code != 0 || json.Unmarshal([]byte(out), &list) != nil {
			t.Fatalf("config print --resolved %v: %d\n%s%s", args, code, out, said)
		}
		byKey := map[string]resolved{}
		for _, r := range list {
			byKey[r.Key] = r
		}
		return byKey
	}
	fromDefaults, fromFile := resolve(), resolve("--config", "all.yaml")
	if len(fromFile) != len(serverSettings()) {
		t.Fatalf("%d of %d settings", len(fromFile), len(serverSettings()))
	}
	for key, r := range fromFile {
		if r.Source != "all.yaml" || r.Value != fromDefaults[key].Value {
			t.Errorf("%s is %q from %s, by default %q", key, r.Value, r.Source, fromDefaults[key].Value)
		}
	}
}

func TestEverySettingReachesTheServer(t *testing.T) {
	a := &app{env: testEnv(t.TempDir(), nil, newLines(), newLines())}
	// Each number and duration is another, so that one in the wrong place shows.
	values := settingValues{"server_id": "a", "data_dir": "data", "log_level": "info", "log_format": "text", "shutdown_grace": "17s"}
	for i, s := range serverSettings() {
		switch {
		case values[s.key] != "":
		case s.kind == durationSetting:
			values[s.key] = strings.Repeat("1", 1+i%3) + "s"
		case s.kind == numberSetting:
			values[s.key] = strings.Repeat("2", 1+i%5)
		case s.kind == boolSetting:
			values[s.key] = "true"
		case s.key != "api_keys_file" && s.key != "manifest_key_file" && s.key != "at_rest_key_file": // these are read here
			values[s.key] = "/is/" + s.key
		}
	}
	cfg, err := a.serverConfig(values)
	if err != nil {
		t.Fatal(err)
	}
	for key, got := range map[string]any{
		"promote_after": cfg.Autopilot.Stabilize, "promote_trailing": cfg.Autopilot.MaxTrailing,
		"remove_dead_min_quorum": cfg.Autopilot.MinQuorum, "remove_dead_after": cfg.Autopilot.DeadAfter,
		"heartbeat_timeout": cfg.HeartbeatTimeout, "election_timeout": cfg.ElectionTimeout, "leader_lease": cfg.LeaderLease,
		"snapshot_interval": cfg.SnapshotInterval, "snapshot_threshold": cfg.SnapshotThreshold, "trailing_logs": cfg.TrailingLogs,
		"disk_timeout": cfg.DiskTimeout, "min_free_bytes": cfg.MinFreeBytes, "shutdown_grace": cfg.ShutdownGrace,
		"xds_connections": cfg.XDSLimits.Connections, "xds_connections_per_address": cfg.XDSLimits.ConnectionsPerAddress,
		"xds_streams_per_connection": cfg.XDSLimits.StreamsPerConnection, "xds_first_message": cfg.XDSLimits.FirstMessage,
		"xds_message_size": cfg.XDSLimits.MessageSize, "xds_subscriptions": cfg.XDSLimits.Subscriptions, "xds_types": cfg.XDSLimits.Types,
		"xds_cold_starts": cfg.XDSLimits.ColdStarts, "xds_replacements": cfg.XDSLimits.Replacements,
		"xds_connection_age": cfg.XDSLimits.ConnectionAge, "xds_connection_age_grace": cfg.XDSLimits.ConnectionAgeGrace,
		"xds_keepalive": cfg.XDSLimits.Keepalive, "xds_min_ping": cfg.XDSLimits.MinPing,
		"xds_gate": cfg.XDSTiming.Gate, "xds_linger": cfg.XDSTiming.Linger, "xds_settle": cfg.XDSTiming.Settle,
		"xds_catch_up": cfg.XDSTiming.CatchUp, "xds_ttl": cfg.XDSTiming.TTL, "xds_ack": cfg.XDSTiming.Ack,
		"admin_tls_client_ca_file": cfg.AdminTLS.ClientCAFile, "xds_tls_client_ca_file": cfg.XDSTLS.ClientCAFile, "raft_tls_ca_file": cfg.RaftTLS.CAFile,
		"raft_advertise": cfg.RaftAdvertise, "trust_domain": cfg.TrustDomain, "ops_addr": cfg.OpsAddr,
	} {
		want := values[key]
		if _, ok := got.(time.Duration); ok {
			d, err := time.ParseDuration(want)
			if err != nil {
				t.Fatal(err)
			}
			want = d.String()
		}
		if want == "" || fmt.Sprint(got) != want {
			t.Errorf("%s = %q reached the server as %q", key, want, fmt.Sprint(got))
		}
	}
}
