package cli

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/spf13/cobra"
)

// snapshotChunk is the size of the pieces in which a snapshot is sent, in bytes.
const snapshotChunk = 256 << 10

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Back the whole cluster up, and restore it",
		Long: `Back the whole cluster up into one file, and restore it. A snapshot holds all
groups with their history, and with private keys and credentials in clear: keep it
as you keep those, or pipe it through something that encrypts. It does not hold
the servers' own configuration, certificates and API keys.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.snapshotSaveCommand(), a.snapshotInspectCommand(), a.snapshotRestoreCommand())
	return cmd
}

func (a *app) snapshotSaveCommand() *cobra.Command {
	var overwrite bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Write everything that is committed into a file",
		Long: `Write everything that is committed into a file of mode 0600, or to stdout with -.
The file appears under its name only once it is complete, checked to its end and
on disk.`,
		Example: `  muster snapshot save muster.snap
  muster snapshot save /backup/muster-$(date +%F).snap
  muster snapshot save - | age -r age1... > muster.snap.age`,
		Args: exactArgs("FILE"),
	}
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace FILE when it exists")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if name == "-" && a.env.StdoutTTY {
			return &usageError{err: errors.New("will not write a snapshot to a terminal"), try: "muster snapshot save FILE"}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		if name == "-" {
			info, err := c.saveTo(cmd.Context(), a.env.Stdout)
			if err != nil {
				return err
			}
			a.say("Saved %s.", describeSnapshot(info))
			return nil
		}
		path := a.env.path(name)
		if !overwrite {
			if _, err := os.Lstat(path); err == nil {
				return &failure{err: fmt.Errorf("%s exists", name), code: exitConflict, try: "muster snapshot save " + shellQuote(name) + " --overwrite"}
			}
		}
		info, err := c.saveFile(cmd.Context(), path)
		if err != nil {
			return err
		}
		return a.print(info, func(t *table) {
			t.text("saved %s to %s", describeSnapshot(info), name)
		})
	}
	return cmd
}

// saveFile writes a snapshot beside path, checks all of it and then moves it
// there, so that a backup that was cut short never looks like one.
func (c *client) saveFile(ctx context.Context, path string) (_ *musterv1.SnapshotInfo, err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	defer func() {
		_ = tmp.Close()
		_ = os.Remove(tmp.Name()) // not there any more when all went well
	}()
	var info *musterv1.SnapshotInfo
	err = c.servers.retry(ctx, func() error {
		if err := tmp.Truncate(0); err != nil {
			return fmt.Errorf("save snapshot: %w", err)
		}
		if _, err := tmp.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("save snapshot: %w", err)
		}
		var err error
		info, err = c.saveTo(ctx, tmp)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := tmp.Sync(); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	// What lies on the disk counts, not what was sent.
	kept, err := raftstore.InspectSnapshot(bufio.NewReaderSize(tmp, snapshotChunk))
	if err != nil {
		return nil, fmt.Errorf("the file that was written does not hold: %w", err)
	}
	if !sameSnapshot(kept, info) {
		return nil, errors.New("the file that was written is not what the server sent")
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if err := syncDirectory(dir); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	return info, nil
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// saveTo streams a snapshot into w.
func (c *client) saveTo(ctx context.Context, w io.Writer) (*musterv1.SnapshotInfo, error) {
	stream, err := c.cluster.SaveSnapshot(ctx, &musterv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, err
	}
	var bytes uint64
	var info *musterv1.SnapshotInfo
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		n, err := w.Write(resp.GetChunk())
		if err != nil {
			return nil, fmt.Errorf("save snapshot: %w", err)
		}
		bytes += uint64(n)
		info = resp.GetInfo()
	}
	if info == nil || info.GetBytes() != bytes {
		return nil, fmt.Errorf("the snapshot was cut short after %d bytes", bytes)
	}
	return info, nil
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Check a snapshot file to its end and tell what is in it",
		Long: `Check a snapshot file, or stdin with -, to its end and tell what is in it. It needs
no server. The exit code is 2 when the file is damaged.`,
		Example: "  muster snapshot inspect muster.snap\n  age -d muster.snap.age | muster snapshot inspect -",
		Args:    exactArgs("FILE"),
	}
	a.outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		file, err := a.openSnapshot(args[0])
		if err != nil {
			return err
		}
		defer file.Close()
		kept, err := inspect(args[0], file)
		if err != nil {
			return err
		}
		info := snapshotInfo(kept)
		return a.print(info, func(t *table) {
			t.row("epoch", strconv.FormatUint(info.GetEpoch(), 10))
			t.row("log index", fmt.Sprintf("%d (term %d)", info.GetIndex(), info.GetTerm()))
			t.row("groups", strconv.FormatUint(info.GetGroups(), 10))
			t.row("resources", strconv.FormatUint(info.GetResources(), 10))
			t.row("size", byteSize(info.GetBytes()))
			t.row("checksum", hex.EncodeToString(info.GetChecksum()))
		})
	}
	return cmd
}

func (a *app) snapshotRestoreCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the state of the whole cluster by a snapshot's",
		Long: `Replace the state of the whole cluster by a snapshot's, FILE or stdin with -. What
was written since the snapshot is gone. The file is checked to its end, here and
by the server, before anything is replaced. The epoch rises above the cluster's
and the snapshot's, so that data planes take the restored groups as new and none
goes back to a version it had. The cluster may be the one that the snapshot is of
or a new one.`,
		Example: `  muster snapshot restore muster.snap
  age -d muster.snap.age | muster snapshot restore - --yes`,
		Args: exactArgs("FILE"),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if name == "-" && !yes {
			return &usageError{err: errors.New("cannot both read the snapshot and ask on stdin"), try: "muster snapshot restore - --yes"}
		}
		file, err := a.openSnapshot(name)
		if err != nil {
			return err
		}
		defer file.Close()
		if name == "-" {
			// It is read twice, to be checked and to be sent.
			if file, err = keepAside(file); err != nil {
				return err
			}
			defer file.Close()
		}
		kept, err := inspect(name, file)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		// Also finds a server that answers: the stream below is not repeated.
		now, err := c.cluster.GetClusterStatus(cmd.Context(), &musterv1.GetClusterStatusRequest{})
		if err != nil {
			return err
		}
		deed := fmt.Sprintf("replace the whole state of the cluster at %s (epoch %d, %s) by %s", c.target, now.GetEpoch(), plural(int(now.GetGroups()), "group"), describeSnapshot(snapshotInfo(kept)))
		if err := a.confirm(yes, deed, "restore", "muster snapshot restore "+shellQuote(name)); err != nil {
			return err
		}
		if _, err := file.(io.Seeker).Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		info, err := c.restore(cmd.Context(), file)
		if err != nil {
			return err
		}
		return a.print(info, func(t *table) {
			t.text("restored %s, %s; the epoch is now %d", plural(int(info.GetGroups()), "group"), plural(int(info.GetResources()), "resource"), info.GetEpoch())
		})
	}
	return cmd
}

// restore streams a snapshot to the server. It is done once: a second restore
// would undo what was written after the first.
func (c *client) restore(ctx context.Context, r io.Reader) (*musterv1.SnapshotInfo, error) {
	stream, err := c.cluster.RestoreSnapshot(ctx)
	if err != nil {
		return nil, unavailable(c.target, err)
	}
	chunk := make([]byte, snapshotChunk)
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			if sendErr := stream.Send(&musterv1.RestoreSnapshotRequest{Chunk: chunk[:n]}); sendErr != nil {
				break // the answer says why
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read snapshot: %w", err)
		}
	}
	resp, err := stream.CloseAndRecv()
	if retriable(err) && !serverAnswered(err) {
		return nil, &failure{err: fmt.Errorf("%s: the connection broke, and it is not known whether the snapshot was restored: %s", c.target, message(err)),
			code: exitUnavailable, try: "muster cluster status; a restore raises the epoch"}
	}
	if err != nil {
		return nil, err
	}
	return resp.GetInfo(), nil
}

func (a *app) openSnapshot(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.env.Stdin), nil
	}
	file, err := os.Open(a.env.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &failure{err: fmt.Errorf("read snapshot: %w", err), code: exitNotFound}
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return file, nil
}

// keepAside copies a stream into a file without a name.
func keepAside(r io.Reader) (io.ReadCloser, error) {
	tmp, err := os.CreateTemp("", "muster-snapshot-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	_ = os.Remove(tmp.Name())
	if _, err = io.Copy(tmp, r); err == nil {
		_, err = tmp.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = tmp.Close()
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return tmp, nil
}

// inspect checks a snapshot to its end.
func inspect(name string, r io.Reader) (raftstore.SnapshotInfo, error) {
	info, err := raftstore.InspectSnapshot(r)
	if err != nil {
		return info, &failure{err: fmt.Errorf("%s: %w", name, err), code: exitInvalid}
	}
	return info, nil
}

func snapshotInfo(i raftstore.SnapshotInfo) *musterv1.SnapshotInfo {
	return &musterv1.SnapshotInfo{
		Epoch: i.Epoch, Index: i.Index, Term: i.Term, Groups: uint64(i.Groups), Resources: uint64(i.Resources),
		Bytes: uint64(i.Bytes), Checksum: i.Checksum[:],
	}
}

func sameSnapshot(kept raftstore.SnapshotInfo, sent *musterv1.SnapshotInfo) bool {
	return uint64(kept.Bytes) == sent.GetBytes() && string(kept.Checksum[:]) == string(sent.GetChecksum())
}

func describeSnapshot(i *musterv1.SnapshotInfo) string {
	return fmt.Sprintf("%s, %s of epoch %d (%s)", plural(int(i.GetGroups()), "group"), plural(int(i.GetResources()), "resource"), i.GetEpoch(), byteSize(i.GetBytes()))
}
