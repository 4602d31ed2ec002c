package eventrelay_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// onSmallDisk is the variable that makes the test run in a mount namespace of its own.
const onSmallDisk = "GROUPCAST_DRILL_SMALL_DISK"

// TestDrillFullDisk: the disk that the queue is on is full, really. The service goes on, events wait; when there is room the queue takes
// them, in order, without anybody restarting anything.
func TestDrillFullDisk(t *testing.T) {
	if dir := os.Getenv(onSmallDisk); dir != "" {
		fillDisk(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	again := exec.Command(os.Args[0], "-test.run=^TestDrillFullDisk$", "-test.v")
	again.Env = append(os.Environ(), onSmallDisk+"="+t.TempDir())
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // what is mounted goes with the process
	out, err := again.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func fillDisk(t *testing.T, dir string) {
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"))
	// The queue may take more than there is.
	q := queue(t, eventqueue.Options{DataDir: dir, MaxBytes: 64 << 20})
	db := storetest.SQLite(t)
	relaying(t, db.Store, q)
	l := newLife(t, db)
	l.happen(t, 5)
	published(t, db)
	filler, err := os.Create(filepath.Join(dir, "filler"))
	require.NoError(t, err)
	for block := make([]byte, 4096); err == nil; {
		_, err = filler.Write(block)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, filler.Close())
	l.happen(t, 200) // each is accepted
	require.Eventually(t, func() bool {
		b, err := db.EventBacklog(ctx)
		return err == nil && b.Count > 0 && b.Oldest > 2*time.Second
	}, patience, 50*time.Millisecond, "it is full")
	require.NoError(t, errors.Join(os.Remove(filler.Name()), unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m")))
	l.happen(t, 5)
	published(t, db)
	ledger(t, db, q)
}
