package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/musterhq/muster/raftstore/state"
)

// A snapshot file is the magic, then each encoded record of the state with its
// length before it, as a uvarint. The last record is the trailer, whose
// SHA-256 covers the ones before it; nothing follows it.
const snapshotMagic = "muster-snapshot-1\n"

// maxRecord bounds one record, in bytes, by what a protobuf message can be. A
// revision holds the bodies before and after of all that it changed: a command
// that deletes by id, or rolls back, may be tiny and its record the whole group.
const maxRecord = math.MaxInt32

// writeSnapshot writes the state as a snapshot file.
func writeSnapshot(w io.Writer, s *state.State) error {
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	var length [binary.MaxVarintLen64]byte
	for record, err := range s.Encoded() {
		if err != nil {
			return fmt.Errorf("encode snapshot: %w", err)
		}
		if len(record) > maxRecord {
			// Better no snapshot than one that nobody can read.
			return fmt.Errorf("encode snapshot: a record has %d bytes, %d are allowed", len(record), maxRecord)
		}
		if _, err := w.Write(binary.AppendUvarint(length[:0], uint64(len(record)))); err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
		if _, err := w.Write(record); err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
	}
	return nil
}

// readSnapshot reads a snapshot file to its end and checks all of it.
func readSnapshot(r io.Reader) (*state.State, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(br, magic); err != nil || string(magic) != snapshotMagic {
		return nil, &state.SnapshotError{Reason: "this is not a muster snapshot"}
	}
	return state.RestoreEncoded(func(yield func([]byte, error) bool) {
		var record bytes.Buffer
		for n := uint64(0); ; n++ {
			record.Reset()
			err := readRecord(br, &record)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				err = &state.SnapshotError{Record: n, Reason: err.Error()}
			}
			if !yield(record.Bytes(), err) || err != nil {
				return
			}
		}
	})
}

// readRecord returns io.EOF only between records.
func readRecord(r *bufio.Reader, into *bytes.Buffer) error {
	if _, err := r.Peek(1); errors.Is(err, io.EOF) {
		return io.EOF
	}
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return fmt.Errorf("its length cannot be read: %w", cutShort(err))
	}
	if size > maxRecord {
		return fmt.Errorf("is %d bytes long, %d are allowed", size, maxRecord)
	}
	// CopyN grows the buffer as data arrives: a false length costs no memory.
	if _, err := io.CopyN(into, r, int64(size)); err != nil {
		return fmt.Errorf("cannot be read: %w", cutShort(err))
	}
	return nil
}

// cutShort keeps io.EOF in the middle of a record from looking like the end.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
