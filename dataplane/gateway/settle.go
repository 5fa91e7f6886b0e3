package gateway

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// Bounds on the rest of a request's body after its answer: a client that sends it in
// time keeps its connection.
const (
	restTimeout = time.Second
	restBytes   = 256 << 10
)

// cutBody ends all reading of the request's body. An HTTP/1.1 connection cannot be
// used for another request afterwards.
func (x *exchange) cutBody() {
	x.cut.Store(true)
	_ = http.NewResponseController(x.w).SetReadDeadline(past) // net/http has it for both protocols
}

// abort ends the exchange so that the client sees its answer as not whole.
func (x *exchange) abort() {
	x.cutBody()                 // net/http would read on
	panic(http.ErrAbortHandler) // vet:allow net/http's way to cut an exchange off
}

// settle sees to what is left of the request's body once it is answered. Nothing that
// a client sends late may be taken for another request, and nobody may hold a
// connection by sending nothing. HTTP/2 has streams for that.
func (x *exchange) settle() {
	if x.in.ProtoMajor != 1 || x.in.ContentLength == 0 || x.upgraded {
		return
	}
	if !x.cut.Load() {
		if x.body != nil && x.body.complete() || x.restComes() {
			return
		}
		x.cutBody()
	}
	x.body.waitClosed()
	x.closeConnection()
}

// restComes waits a little for the rest of the body, with the answer on its way.
func (x *exchange) restComes() bool {
	rc := http.NewResponseController(x.w)
	if err := rc.Flush(); err != nil || x.expects {
		return false // the client is gone, or sends nothing now
	}
	if err := rc.SetReadDeadline(time.Now().Add(x.gw.restTimeout)); err != nil {
		return false
	}
	x.body.waitClosed()
	if x.body == nil || !x.body.complete() {
		if _, err := io.CopyN(io.Discard, x.in.Body, restBytes); !errors.Is(err, io.EOF) {
			return false
		}
	}
	return rc.SetReadDeadline(time.Time{}) == nil
}

// closeConnection has the server close the connection after the answer, with time for
// the client to read it. To overrun a limit is how a handler can say so at any time.
func (x *exchange) closeConnection() {
	over := http.MaxBytesReader(x.w, io.NopCloser(strings.NewReader("x")), 0)
	_, _ = io.Copy(io.Discard, over) // it fails, as it has to
}
