package cli

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/manifest"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/atrest"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/xds"
)

// serverSettings lists what `muster server` understands.
func serverSettings() []setting {
	store, limits, timing := raftstore.Defaults(), xds.DefaultLimits(), xds.DefaultTiming()
	number := func(key string, fallback int64, help string) setting {
		return setting{key: key, help: help, fallback: strconv.FormatInt(fallback, 10), kind: numberSetting}
	}
	duration := func(key string, fallback time.Duration, help string) setting {
		return setting{key: key, help: help, fallback: exactDuration(fallback), kind: durationSetting}
	}
	signed := func(s setting) setting {
		s.signed = true
		return s
	}
	return []setting{
		{key: "server_id", help: "the server's stable name in the cluster (required)"},
		{key: "data_dir", help: "directory for everything the server keeps (required)"},
		{key: "bootstrap", help: "make this the first server of a new cluster, when data_dir holds none", fallback: "false", kind: boolSetting},
		{key: "admin_addr", help: "host:port of the admin API", fallback: server.DefaultAdminAddr},
		{key: "xds_addr", help: "host:port for data planes", fallback: server.DefaultXDSAddr},
		{key: "raft_addr", help: "host:port for the other servers; empty runs a single server without a raft port"},
		{key: "raft_advertise", help: "address that the other servers are told, when it is not raft_addr"},
		{key: "join", help: "raft addresses of servers of the cluster that a new data_dir is to become part of, separated by commas"},
		{key: "ops_addr", help: "host:port for metrics and health without a key; empty serves none"},
		{key: "api_keys_file", help: "file of hashed API keys, mode 0600 (default: api-keys.json in data_dir, made with one key when there is none)"},
		{key: "admin_tls_cert_file", help: "PEM certificate of the admin port"},
		{key: "admin_tls_key_file", help: "PEM key of the admin port"},
		{key: "admin_tls_client_ca_file", help: "PEM CAs that callers' certificates must chain to; empty asks for none"},
		{key: "xds_tls_cert_file", help: "PEM certificate of the xDS port"},
		{key: "xds_tls_key_file", help: "PEM key of the xDS port"},
		{key: "xds_tls_client_ca_file", help: "PEM CAs that data planes' certificates must chain to"},
		{key: "raft_tls_cert_file", help: "PEM certificate of this server among the others"},
		{key: "raft_tls_key_file", help: "PEM key of this server among the others"},
		{key: "raft_tls_ca_file", help: "PEM CAs that the other servers' certificates must chain to"},
		{key: "trust_domain", help: "SPIFFE trust domain of data planes' certificates"},
		{key: "manifest_key_file", help: "PEM file of the Ed25519 key that signs each revision for relays, the same on all servers; empty signs nothing"},
		{key: "at_rest_key_file", help: "age identities, mode 0600, that encrypt the log and the snapshots on disk: the first encrypts, all decrypt; empty leaves them in clear"},
		{key: "insecure", help: "allow plaintext, on loopback addresses", fallback: "false", kind: boolSetting},

		duration("promote_after", store.Autopilot.Stabilize, "how long a joined server must keep up before it gets a vote"),
		number("promote_trailing", int64(store.Autopilot.MaxTrailing), "log entries that a server may be behind and still keep up"),
		number("remove_dead_min_quorum", int64(store.Autopilot.MinQuorum), "voters below which no dead server is removed; 0 removes none, else at least 3"),
		duration("remove_dead_after", store.Autopilot.DeadAfter, "how long a server must be out of reach to count as dead"),

		duration("heartbeat_timeout", store.HeartbeatTimeout, "how long a follower waits for its leader before it seeks election"),
		duration("election_timeout", 0, "how long an election may take; 0 is 500ms, or heartbeat_timeout when that is longer"),
		duration("leader_lease", 0, "how long a leader goes on without a majority; 0 is half of heartbeat_timeout"),
		duration("snapshot_interval", store.SnapshotInterval, "how often it is looked whether a snapshot is worthwhile"),
		number("snapshot_threshold", int64(store.SnapshotThreshold), "log entries that make a snapshot worthwhile"),
		number("trailing_logs", 0, "log entries kept behind a snapshot for servers that are behind; 0 is snapshot_threshold and a quarter"),
		signed(duration("disk_timeout", store.DiskTimeout, "how long one write to disk may take before the process ends; negative is for ever")),
		signed(number("min_free_bytes", store.MinFreeBytes, "free bytes below which writes are refused; negative is none")),

		signed(number("xds_connections", int64(limits.Connections), "open connections on the xDS port; negative is no limit, here and below")),
		signed(number("xds_connections_per_address", int64(limits.ConnectionsPerAddress), "open connections from one IP address")),
		signed(number("xds_streams_per_connection", int64(limits.StreamsPerConnection), "open streams of one connection")),
		signed(duration("xds_first_message", limits.FirstMessage, "how long a stream may wait before its first request")),
		signed(number("xds_message_size", int64(limits.MessageSize), "bytes of one request of a data plane")),
		signed(number("xds_subscriptions", int64(limits.Subscriptions), "names that a stream may subscribe to")),
		signed(number("xds_types", int64(limits.Types), "types that a stream may subscribe to")),
		signed(number("xds_cold_starts", int64(limits.ColdStarts), "first requests that are worked on at a time")),
		signed(number("xds_replacements", int64(limits.Replacements), "times a minute that a stream may be replaced by a newer one of its node id")),
		signed(duration("xds_connection_age", limits.ConnectionAge, "how long a connection lives before its data plane is asked to come back; 0 is for ever")),
		signed(duration("xds_connection_age_grace", limits.ConnectionAgeGrace, "how long streams may go on after that")),
		signed(duration("xds_keepalive", limits.Keepalive, "how often an idle connection is pinged")),
		signed(duration("xds_min_ping", limits.MinPing, "how often a data plane may ping; more often closes its connection")),
		duration("xds_gate", timing.Gate, "how long routes wait for the acknowledgement of the clusters they may need"),
		duration("xds_linger", timing.Linger, "how long a gRPC client is left the clusters that it still asks for"),
		duration("xds_settle", timing.Settle, "how long a stream is left to say what the client holds before anything is removed from it"),
		duration("xds_catch_up", timing.CatchUp, "how long a data plane waits that is ahead of the server"),
		duration("xds_ttl", timing.TTL, "how long clients keep resources without hearing of them; 0 is for ever"),
		duration("xds_ack", timing.Ack, "how long a response may go unanswered before the stream is closed"),

		{key: "shutdown_grace", help: "how long a stop waits for calls under way", fallback: "5s", kind: durationSetting},
		{key: "log_level", help: "debug, info, warn or error", fallback: "info"},
		{key: "log_format", help: "text or json", fallback: "text"},
	}
}

// exactDuration writes a duration without the zeros that its String ends with: 24h.
func exactDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// serverConfig turns resolved settings into a configuration. The API keys are
// read, or made.
func (a *app) serverConfig(v settingValues) (server.Config, error) {
	if v["data_dir"] == "" || v["server_id"] == "" {
		return server.Config{}, &usageError{err: fmt.Errorf("data_dir and server_id are required"), try: "muster config print"}
	}
	logger, err := newLogger(a.env.Stderr, v["log_level"], v["log_format"])
	if err != nil {
		return server.Config{}, err
	}
	dir := a.env.path(v["data_dir"])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return server.Config{}, fmt.Errorf("data directory: %w", err)
	}
	keysFile := v["api_keys_file"]
	if keysFile == "" {
		keysFile = filepath.Join(dir, "api-keys.json")
	}
	keysFile = a.env.path(keysFile)
	keys, secret, err := auth.LoadOrCreateKeys(keysFile)
	if err != nil {
		return server.Config{}, err
	}
	if secret != "" {
		a.say("The first API key, shown once and kept only as a hash in %s:\n  %s", keysFile, secret)
	}
	manifestKey, err := a.manifestKey(a.file(v, "manifest_key_file"))
	if err != nil {
		return server.Config{}, err
	}
	var atRest *atrest.Keys
	if file := a.file(v, "at_rest_key_file"); file != "" {
		if atRest, err = atrest.Load(file); err != nil {
			return server.Config{}, &usageError{err: fmt.Errorf("at_rest_key_file: %w", err), try: "age-keygen -o KEYFILE"}
		}
	}
	return server.Config{
		ManifestKey:   manifestKey,
		AtRest:        atRest,
		ServerID:      v["server_id"],
		DataDir:       dir,
		Version:       readBuildVersion().Version,
		AdminAddr:     v["admin_addr"],
		XDSAddr:       v["xds_addr"],
		RaftAddr:      v["raft_addr"],
		RaftAdvertise: v["raft_advertise"],
		Join:          v.list("join"),
		OpsAddr:       v["ops_addr"],
		Bootstrap:     v.bool("bootstrap"),
		Keys:          keys,
		KeysFile:      keysFile,
		AdminTLS:      auth.TLSFiles{CertFile: a.file(v, "admin_tls_cert_file"), KeyFile: a.file(v, "admin_tls_key_file"), ClientCAFile: a.file(v, "admin_tls_client_ca_file")},
		XDSTLS:        auth.TLSFiles{CertFile: a.file(v, "xds_tls_cert_file"), KeyFile: a.file(v, "xds_tls_key_file"), ClientCAFile: a.file(v, "xds_tls_client_ca_file")},
		RaftTLS:       raftstore.TLSFiles{CertFile: a.file(v, "raft_tls_cert_file"), KeyFile: a.file(v, "raft_tls_key_file"), CAFile: a.file(v, "raft_tls_ca_file")},
		TrustDomain:   v["trust_domain"],
		Insecure:      v.bool("insecure"),
		Autopilot: raftstore.Autopilot{
			Stabilize:   v.duration("promote_after"),
			MaxTrailing: uint64(v.number("promote_trailing")),
			MinQuorum:   uint(v.number("remove_dead_min_quorum")),
			DeadAfter:   v.duration("remove_dead_after"),
		},
		HeartbeatTimeout:  v.duration("heartbeat_timeout"),
		ElectionTimeout:   v.duration("election_timeout"),
		LeaderLease:       v.duration("leader_lease"),
		SnapshotInterval:  v.duration("snapshot_interval"),
		SnapshotThreshold: uint64(v.number("snapshot_threshold")),
		TrailingLogs:      uint64(v.number("trailing_logs")),
		DiskTimeout:       v.duration("disk_timeout"),
		MinFreeBytes:      v.number("min_free_bytes"),
		XDSLimits: xds.Limits{
			Connections:           int(v.number("xds_connections")),
			ConnectionsPerAddress: int(v.number("xds_connections_per_address")),
			StreamsPerConnection:  int(v.number("xds_streams_per_connection")),
			FirstMessage:          v.duration("xds_first_message"),
			MessageSize:           int(v.number("xds_message_size")),
			Subscriptions:         int(v.number("xds_subscriptions")),
			Types:                 int(v.number("xds_types")),
			ColdStarts:            int(v.number("xds_cold_starts")),
			Replacements:          int(v.number("xds_replacements")),
			ConnectionAge:         v.duration("xds_connection_age"),
			ConnectionAgeGrace:    v.duration("xds_connection_age_grace"),
			Keepalive:             v.duration("xds_keepalive"),
			MinPing:               v.duration("xds_min_ping"),
		},
		XDSTiming: xds.Timing{
			Gate:    v.duration("xds_gate"),
			Linger:  v.duration("xds_linger"),
			Settle:  v.duration("xds_settle"),
			CatchUp: v.duration("xds_catch_up"),
			TTL:     v.duration("xds_ttl"),
			Ack:     v.duration("xds_ack"),
		},
		ShutdownGrace: v.duration("shutdown_grace"),
		Logger:        logger,
	}, nil
}

// manifestKey reads the key that signs revisions; nil when no file is named.
func (a *app) manifestKey(file string) (ed25519.PrivateKey, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the manifest key: %w", err)
	}
	key, err := manifest.ParsePrivateKey(text)
	if err != nil {
		return nil, usagef("%s: %s", file, err)
	}
	return key, nil
}

// file is where the file lies that a setting names; empty stays empty.
func (a *app) file(v settingValues, key string) string {
	if v[key] == "" {
		return ""
	}
	return a.env.path(v[key])
}
