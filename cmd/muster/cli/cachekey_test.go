package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestTheKeyOfTheCacheComesFromTheEnvironmentOrAFile(t *testing.T) {
	dir := t.TempDir()
	const key, secret = "canary key of the cache", "ann-secret-in-the-cache"
	for name, text := range map[string]string{
		"server.yaml": "server_id: a\ndata_dir: data\nadmin_addr: 127.0.0.1:0\nxds_addr: 127.0.0.1:0\ninsecure: true\nbootstrap: true\nlog_level: error\n",
		"group.yaml": "services:\n- id: a\n  name: a\n  upstream: {nodes: [{host: 127.0.0.1, port: 1, weight: 1}]}\n  routes: [{id: a, name: a, uris: [/a], plugins: {key-auth: {}}}]\n" +
			"consumers:\n- username: ann\n  credentials: [{id: k, name: k, type: key-auth, config: {key: " + secret + "}}]\n",
		"key":   key + "\n",
		"other": "another key of the cache\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, said, stopServer := background(t, dir, nil, "server", "--config", "server.yaml")
	vars := map[string]string{"MUSTER_API_KEY": said.await(t, `shown once[^\n]*\n  (mst-\S+)`)[1]}
	addrs := said.await(t, `admin on (\S+), xDS on (\S+)\.`)
	vars["MUSTER_ADDR"] = addrs[1]
	if code, _, stderr := run(t, dir, vars, "group", "create", "default"); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := run(t, dir, vars, "apply", "-f", "group.yaml"); code != 0 {
		t.Fatal(stderr)
	}
	gateway := func(server string, vars map[string]string, args ...string) (*lines, func() int) {
		_, said, stop := background(t, dir, vars, append([]string{"gateway", "--servers", server, "--cache-dir", "cache",
			"--http-addr", "127.0.0.1:0", "--https-addr", "", "--status-addr", "", "--log-level", "debug"}, args...)...)
		return said, stop
	}
	first, stop := gateway(addrs[2], map[string]string{cacheKeyEnv: key})
	first.await(t, "configuration in service")
	stop()
	stopServer()
	files, err := filepath.Glob(filepath.Join(dir, "cache", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, path := range files {
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte("a.example.com")) {
			t.Errorf("%s is in clear, or cannot be read: %v", path, err)
		}
	}
	again, stop := gateway("127.0.0.1:1", nil, "--cache-key-file", "key")
	again.await(t, "last known good configuration in service.* from=disk")
	stop()
	wrong, stop := gateway("127.0.0.1:1", nil, "--cache-key-file", "other")
	wrong.await(t, "cached configuration refused.* reason=.*encrypted with another key")
	stop()
	for _, l := range []*lines{first, again, wrong} {
		if bytes.Contains([]byte(l.String()), []byte(key)) {
			t.Errorf("a log holds the key: %s", l)
		}
	}
}
