package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// buffers holds the buffers that bodies are copied through.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, bufferSize)
	return &p
}

func (b *buffers) put(p *[]byte) { b.pool.Put(p) }

// hopHeaders concern one connection only.
var hopHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade"}

// removeHopHeaders removes them, and what Connection lists.
func removeHopHeaders(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" && !strings.EqualFold(name, "te") {
				h.Del(name)
			}
		}
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
}

// relay sends an upstream's answer to the client.
func (x *exchange) relay(resp *http.Response) {
	h := x.w.Header()
	removeHopHeaders(resp.Header)
	for name, values := range resp.Header {
		h[name] = values
	}
	delete(h, "Trailer")
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // none, rather than what net/http would guess
	}
	if !x.chain.router.suppressEnvoyHeaders {
		h["X-Envoy-Upstream-Service-Time"] = []string{strconv.FormatInt(x.gw.now().Sub(x.started).Milliseconds(), 10)}
	}
	x.status = resp.StatusCode
	x.routeResponse(h)
	x.filterResponse(h)
	x.w.WriteHeader(resp.StatusCode)
	if x.method == http.MethodHead {
		return
	}
	// A client that takes nothing is not waited for longer than the upstream is.
	rc := http.NewResponseController(x.w)
	defer context.AfterFunc(x.ctx, func() { _ = rc.SetWriteDeadline(past) })()
	if err := x.copyBody(resp); err != nil {
		x.abort() // the client has to see that the answer is not whole
	}
	x.sendTrailers(resp)
}

// copyBody copies the body, and flushes what has come whenever more is to be waited
// for.
func (x *exchange) copyBody(resp *http.Response) error {
	buf := x.gw.buffers.get()
	defer x.gw.buffers.put(buf)
	rc := http.NewResponseController(x.w)
	written := int64(0)
	if resp.ContentLength < 0 {
		if err := rc.Flush(); err != nil {
			return err
		}
	}
	for {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			x.progress()
			if _, werr := x.w.Write((*buf)[:n]); werr != nil {
				return werr
			}
			written += int64(n)
			if written != resp.ContentLength && err == nil {
				if ferr := rc.Flush(); ferr != nil {
					return ferr
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// sendTrailers sends the trailers of an answer; over HTTP/1.1, like Envoy, none.
func (x *exchange) sendTrailers(resp *http.Response) {
	if x.in.ProtoMajor < 2 || len(resp.Trailer) == 0 {
		return
	}
	h := x.w.Header()
	for name, values := range resp.Trailer {
		h[http.TrailerPrefix+name] = values
	}
	// Without a body the headers must be out before the trailers.
	_ = http.NewResponseController(x.w).Flush() // fails when the client is gone
}

// switchProtocols joins the client and the upstream that has agreed to an upgrade.
func (x *exchange) switchProtocols(resp *http.Response) {
	upstream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || x.upgrade == "" || !strings.EqualFold(resp.Header.Get("Upgrade"), x.upgrade) {
		x.answerFailure(errProtocol, 0)
		return
	}
	upgrade := resp.Header.Get("Upgrade")
	h := http.Header{}
	removeHopHeaders(resp.Header)
	for name, values := range resp.Header {
		h[name] = values
	}
	x.status = resp.StatusCode
	x.routeResponse(h)
	x.filterResponse(h)
	h["Connection"], h["Upgrade"] = []string{"upgrade"}, []string{upgrade}
	client, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		x.answerFailure(errProtocol, 0)
		return
	}
	x.upgraded = true
	defer client.Close()
	// Whatever ends first, or the listener's end, ends both.
	stop := context.AfterFunc(x.ctx, func() {
		_ = client.Close() // ends the copying; nothing else is to be done
		_ = upstream.Close()
	})
	defer stop()
	defer context.AfterFunc(x.on.upgrades, func() { _ = client.Close() })()
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := head.Write(rw); err != nil {
		return
	}
	if err := rw.Flush(); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		x.copyStream(client, upstream)
		_ = client.Close()
	})
	x.copyStream(upstream, rw)
	_ = upstream.Close()
	both.Wait()
}

// copyStream copies one direction of an upgraded connection until it ends.
func (x *exchange) copyStream(to io.Writer, from io.Reader) {
	buf := x.gw.buffers.get()
	defer x.gw.buffers.put(buf)
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			x.progress()
			if _, werr := to.Write((*buf)[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
