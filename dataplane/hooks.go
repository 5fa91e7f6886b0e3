package dataplane

import "time"

// Hooks are called on events of a client. Each may be nil. They are called from
// the client's goroutines, one at a time, and must not block.
type Hooks struct {
	// Connected is called when a server has answered on a new stream.
	Connected func(server string)
	// Disconnected is called when a stream has ended or could not be opened.
	Disconnected func(server string, err error)
	// Received is called for each response.
	Received func(Received)
	// Applied is called after each call of the handler.
	Applied func(Applied)
	// Acknowledged is called for each ACK and NACK sent.
	Acknowledged func(Acknowledged)
	// CacheWritten is called after each write of the last known good configuration.
	CacheWritten func(CacheWritten)
	// SecondHomeRead is called after each look into the second home, and
	// SecondHomeWritten after each attempt to write there: each from a goroutine of
	// its own, beside the other hooks.
	SecondHomeRead    func(SecondHomeRead)
	SecondHomeWritten func(SecondHomeWritten)
}

// Received describes a response of the upstream.
type Received struct {
	TypeURL string
	// Resources and Removed count the resources in the response; Bytes is the size
	// of the message.
	Resources, Removed, Bytes int
}

// Applied describes a call of the handler.
type Applied struct {
	Epoch, Revision uint64
	Whole, Cached   bool
	// Upserted and Removed count resources of all types.
	Upserted, Removed int
	Took              time.Duration
	// Err is what the handler returned.
	Err error
}

// Acknowledged describes an ACK, or with Err a NACK.
type Acknowledged struct {
	TypeURL string
	Err     error
}

// CacheWritten describes a write to disk.
type CacheWritten struct {
	// Bytes is the number of bytes written; Full tells a whole snapshot from an
	// appended change.
	Bytes int
	Full  bool
	Took  time.Duration
	Err   error
}

// SecondHomeRead describes a look into the second home.
type SecondHomeRead struct {
	// Found tells that there was something newer than what is in service, and
	// Epoch and Revision its version.
	Found           bool
	Epoch, Revision uint64
	Took            time.Duration
	Err             error
}

// SecondHomeWritten describes a write to the second home.
type SecondHomeWritten struct {
	Epoch, Revision uint64
	// There tells that the version, or a newer one, was there already.
	There bool
	// Bytes is the size of what was written.
	Bytes int
	Took  time.Duration
	Err   error
}

func (h *Hooks) secondHomeRead(r SecondHomeRead) {
	if h.SecondHomeRead != nil {
		h.SecondHomeRead(r)
	}
}

func (h *Hooks) secondHomeWritten(w SecondHomeWritten) {
	if h.SecondHomeWritten != nil {
		h.SecondHomeWritten(w)
	}
}

func (h *Hooks) connected(server string) {
	if h.Connected != nil {
		h.Connected(server)
	}
}

func (h *Hooks) disconnected(server string, err error) {
	if h.Disconnected != nil {
		h.Disconnected(server, err)
	}
}

func (h *Hooks) received(r Received) {
	if h.Received != nil {
		h.Received(r)
	}
}

func (h *Hooks) applied(a Applied) {
	if h.Applied != nil {
		h.Applied(a)
	}
}

func (h *Hooks) acknowledged(a Acknowledged) {
	if h.Acknowledged != nil {
		h.Acknowledged(a)
	}
}

func (h *Hooks) cacheWritten(w CacheWritten) {
	if h.CacheWritten != nil {
		h.CacheWritten(w)
	}
}
