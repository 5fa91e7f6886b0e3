package raftstore

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// MaxCommand bounds an encoded command, in bytes, before compression.
const MaxCommand = 16 << 20

// A log entry is: magic (2 bytes), codec version, flags, type (2 bytes, big
// endian), CRC-32C over the rest and the bytes before it (4 bytes), then the
// protobuf Command, deflated when the flag says so.
const (
	codecVersion = 1
	headerSize   = 10
	compressFrom = 4 << 10
)

var codecMagic = [2]byte{'m', 'l'}

// The flags of an entry. A server that does not know an entry's type, version
// or one of its flags stops when flagRequired is set, and else skips it.
const (
	flagRequired = 1 << 0
	flagDeflate  = 1 << 1
	flagsKnown   = flagRequired | flagDeflate
)

// The types of entries are the field numbers of Command's oneof, and one for
// several entries in one: its body is each with its length before it, as a
// uvarint.
const (
	typeBatch       = 1
	typeCreateGroup = 10
	typeUpdateGroup = 11
	typeDeleteGroup = 12
	typeCommit      = 13
	typeRaiseEpoch  = 14
	typeChangeGroup = 15
)

func commandType(cmd *musterv1.Command) uint16 {
	switch cmd.GetCommand().(type) {
	case *musterv1.Command_CreateGroup:
		return typeCreateGroup
	case *musterv1.Command_UpdateGroup:
		return typeUpdateGroup
	case *musterv1.Command_DeleteGroup:
		return typeDeleteGroup
	case *musterv1.Command_Commit:
		return typeCommit
	case *musterv1.Command_RaiseEpoch:
		return typeRaiseEpoch
	case *musterv1.Command_ChangeGroup:
		return typeChangeGroup
	}
	return 0
}

var (
	// errSkip marks an entry that this version does not know and may skip.
	errSkip = errors.New("unknown ignorable entry")
	// errDamaged marks an entry whose bytes are not what was written.
	errDamaged = errors.New("entry is damaged")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// encodeCommand returns the log entry of a command.
func encodeCommand(cmd *musterv1.Command) ([]byte, error) {
	typ := commandType(cmd)
	if typ == 0 {
		return nil, errors.New("raftstore: the command is not set")
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if len(body) > MaxCommand {
		return nil, fmt.Errorf("%d bytes of at most %d: %w", len(body), MaxCommand, ErrTooLarge)
	}
	flags := byte(flagRequired)
	if len(body) >= compressFrom {
		if small := deflate(body); len(small) < len(body) {
			body, flags = small, flags|flagDeflate
		}
	}
	return sealEntry(codecVersion, flags, typ, body), nil
}

func sealEntry(version, flags byte, typ uint16, body []byte) []byte {
	out := make([]byte, headerSize, headerSize+len(body))
	out[0], out[1], out[2], out[3] = codecMagic[0], codecMagic[1], version, flags
	binary.BigEndian.PutUint16(out[4:], typ)
	out = append(out, body...)
	binary.BigEndian.PutUint32(out[6:], entrySum(out))
	return out
}

func entrySum(entry []byte) uint32 {
	return crc32.Update(crc32.Checksum(entry[:6], castagnoli), castagnoli, entry[headerSize:])
}

// checkEntry tells whether an entry's bytes are what was written.
func checkEntry(entry []byte) error {
	switch {
	case len(entry) < headerSize:
		return fmt.Errorf("%d bytes: %w", len(entry), errDamaged)
	case entry[0] != codecMagic[0] || entry[1] != codecMagic[1]:
		return fmt.Errorf("no magic: %w", errDamaged)
	case binary.BigEndian.Uint32(entry[6:]) != entrySum(entry):
		return fmt.Errorf("checksum: %w", errDamaged)
	}
	return nil
}

// decodeCommand reads a log entry. The error is errDamaged, errSkip,
// ErrIncompatible or ErrPoison.
func decodeCommand(entry []byte) (*musterv1.Command, error) {
	if err := checkEntry(entry); err != nil {
		return nil, err
	}
	version, flags, typ := entry[2], entry[3], binary.BigEndian.Uint16(entry[4:])
	known := typ >= typeCreateGroup && typ <= typeChangeGroup
	if version != codecVersion || flags&^flagsKnown != 0 || !known {
		if flags&flagRequired == 0 {
			return nil, errSkip
		}
		return nil, fmt.Errorf("version %d, flags %#x, type %d: %w", version, flags, typ, ErrIncompatible)
	}
	body := entry[headerSize:]
	if flags&flagDeflate != 0 {
		var err error
		if body, err = inflate(body, MaxCommand); err != nil {
			return nil, fmt.Errorf("inflate: %w: %w", ErrPoison, err)
		}
	}
	cmd := &musterv1.Command{}
	if err := proto.Unmarshal(body, cmd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPoison, err)
	}
	if commandType(cmd) != typ {
		return nil, fmt.Errorf("%w: the entry is of type %d, its command of type %d", ErrPoison, typ, commandType(cmd))
	}
	return cmd, nil
}

// encodeBatch puts several entries into one.
func encodeBatch(entries [][]byte) []byte {
	size := 0
	for _, e := range entries {
		size += binary.MaxVarintLen32 + len(e)
	}
	body := make([]byte, 0, size)
	for _, e := range entries {
		body = append(binary.AppendUvarint(body, uint64(len(e))), e...)
	}
	return sealEntry(codecVersion, flagRequired, typeBatch, body)
}

// splitBatch returns the entries inside an entry: itself, unless it is a batch
// that this version can read. The error is errDamaged.
func splitBatch(entry []byte) ([][]byte, error) {
	if len(entry) < headerSize || entry[2] != codecVersion || entry[3] != flagRequired || binary.BigEndian.Uint16(entry[4:]) != typeBatch {
		return [][]byte{entry}, nil
	}
	if err := checkEntry(entry); err != nil {
		return nil, err
	}
	var entries [][]byte
	for rest := entry[headerSize:]; len(rest) > 0; {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return nil, fmt.Errorf("batch: %w", errDamaged)
		}
		entries = append(entries, rest[n:n+int(size)])
		rest = rest[n+int(size):]
	}
	return entries, nil
}

func deflate(data []byte) []byte {
	var out bytes.Buffer
	// The level is valid and a bytes.Buffer does not fail.
	w, _ := flate.NewWriter(&out, flate.BestSpeed)
	_, _ = w.Write(data)
	_ = w.Close()
	return out.Bytes()
}

// inflate refuses what grows beyond a limit, in bytes.
func inflate(data []byte, limit int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data)), limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) > limit {
		return nil, ErrTooLarge
	}
	return out, nil
}
