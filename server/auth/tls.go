package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// TLSFiles names the certificate files of a listener. Empty means plaintext.
type TLSFiles struct {
	// CertFile and KeyFile hold the server's PEM chain and key.
	CertFile, KeyFile string
	// ClientCAFile holds the PEM bundle that client certificates must chain
	// to. When set, a client without a certificate is refused.
	ClientCAFile string
}

// Enabled reports whether any file is named.
func (f TLSFiles) Enabled() bool { return f != TLSFiles{} }

// TLS serves a [tls.Config] that follows its files: connections made after a
// change see the new certificates, those before keep theirs. Its methods may
// be called concurrently.
type TLS struct {
	files  TLSFiles
	logger *slog.Logger
	loaded atomic.Pointer[loadedTLS]
}

type loadedTLS struct {
	config *tls.Config
	stamps [3]fileStamp
}

type fileStamp struct {
	size  int64
	mtime time.Time
}

// LoadTLS reads the files once and fails when they do not make a working
// configuration.
func LoadTLS(files TLSFiles, logger *slog.Logger) (*TLS, error) {
	if files.CertFile == "" || files.KeyFile == "" {
		return nil, errors.New("load TLS: both a certificate file and a key file are needed")
	}
	t := &TLS{files: files, logger: logger}
	l, err := t.load()
	if err != nil {
		return nil, err
	}
	t.loaded.Store(l)
	return t, nil
}

// Config returns a server configuration, TLS 1.3 only, that picks up reloaded
// files for each new connection. protos are offered by ALPN.
func (t *TLS) Config(protos ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := t.loaded.Load().config.Clone()
			c.NextProtos = protos
			return c, nil
		},
	}
}

// Current returns the configuration of the files as last read.
func (t *TLS) Current() *tls.Config { return t.loaded.Load().config.Clone() }

// Run rereads changed files every interval until ctx ends. Files that do not
// load are logged and the last good ones stay in use.
func (t *TLS) Run(ctx context.Context, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			t.Reload()
		}
	}
}

// Reload rereads the files when any of them changed, and reports whether new
// ones are in use now.
func (t *TLS) Reload() bool {
	if t.stamps() == t.loaded.Load().stamps {
		return false
	}
	l, err := t.load()
	if err != nil {
		t.logger.Error("TLS files changed but do not load; keeping the last good ones", "error", err)
		return false
	}
	t.loaded.Store(l)
	t.logger.Info("TLS files reloaded", "certificate", t.files.CertFile)
	return true
}

func (t *TLS) load() (*loadedTLS, error) {
	// Stamps first: a change during the load is seen as one by the next reload.
	l := &loadedTLS{stamps: t.stamps()}
	cert, err := tls.LoadX509KeyPair(t.files.CertFile, t.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load TLS: %w", err)
	}
	l.config = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	if t.files.ClientCAFile != "" {
		pem, err := os.ReadFile(t.files.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("load TLS: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("load TLS: %s holds no certificate", t.files.ClientCAFile)
		}
		l.config.ClientCAs = pool
		l.config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return l, nil
}

func (t *TLS) stamps() (s [3]fileStamp) {
	for i, path := range []string{t.files.CertFile, t.files.KeyFile, t.files.ClientCAFile} {
		if path != "" {
			s[i] = stampOf(path)
		}
	}
	return s
}

// stampOf tells one content of a file from another, well enough to look again.
func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.Size(), info.ModTime()}
}
