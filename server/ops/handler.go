package ops

import (
	"encoding/json"
	"net/http"
)

// Handler serves /healthz, which says that the process answers, /readyz, which says
// that it serves, or by the error of ready why it does not, and /metrics.
func Handler(ready func() error, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, "ok", "")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			write(w, http.StatusServiceUnavailable, "not ready", err.Error())
			return
		}
		write(w, http.StatusOK, "ready", "")
	})
	mux.Handle("GET /metrics", metrics)
	return mux
}

func write(w http.ResponseWriter, code int, state, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}{state, reason})
}
