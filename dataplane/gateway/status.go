package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"
)

// statusReport is the body of /status and /status/ready.
type statusReport struct {
	Status string `json:"status"` // "ok" or "error"
	Error  string `json:"error,omitempty"`
	// What is in service; /status only.
	Group     string `json:"group,omitempty"`
	Epoch     uint64 `json:"epoch,omitempty"`
	Revision  uint64 `json:"revision,omitempty"`
	Connected bool   `json:"connected,omitempty"`
	Server    string `json:"server,omitempty"`
	Cached    bool   `json:"cached,omitempty"`
	Refused   int    `json:"refused,omitempty"`
}

// serveStatus serves the status listener until ctx ends.
func (g *Gateway) serveStatus(ctx context.Context) error {
	socket, err := net.Listen("tcp", g.cfg.StatusAddr)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.status = socket.Addr()
	g.mu.Unlock()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", g.handleStatus)
	mux.HandleFunc("GET /status/ready", g.handleReady)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // answers are short: nothing to drain
	defer stop()
	if err := srv.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// handleStatus answers 200 as long as the process lives.
func (g *Gateway) handleStatus(w http.ResponseWriter, _ *http.Request) {
	s := g.client.Status()
	writeStatus(w, http.StatusOK, statusReport{
		Status: "ok", Group: g.cfg.Group, Epoch: s.Epoch, Revision: s.Revision,
		Connected: s.Server != "", Server: s.Server, Cached: s.Cached, Refused: len(s.Refused),
	})
}

// handleReady answers 200 when a configuration is in service, from a control plane
// or from disk.
func (g *Gateway) handleReady(w http.ResponseWriter, _ *http.Request) {
	if !g.client.Status().Configured {
		writeStatus(w, http.StatusServiceUnavailable, statusReport{Status: "error", Error: "no configuration has been received yet"})
		return
	}
	writeStatus(w, http.StatusOK, statusReport{Status: "ok"})
}

func writeStatus(w http.ResponseWriter, code int, report statusReport) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(report) // the client may be gone
}
