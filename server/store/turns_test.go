package store_test

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestWritersTakeTurns: SQLite has one writer at a time, and whoever came first is the next; else some wait until they are told that the database is overloaded,
// while others write again and again.
func TestWritersTakeTurns(t *testing.T) {
	db := storetest.SQLite(t)
	const writers = 12
	var all sync.WaitGroup
	var order, want []int
	require.NoError(t, db.Write(ctx, func(*store.Tx) error {
		for i := range writers {
			want = append(want, i)
			all.Go(func() {
				assert.NoError(t, db.Write(ctx, func(*store.Tx) error { order = append(order, i); return nil }))
			})
			require.Eventually(t, func() bool { return waiting() == i+1 }, time.Minute, time.Millisecond)
		}
		return nil
	}))
	all.Wait()
	require.Equal(t, want, order)
}

// waiting counts the goroutines that wait to write.
func waiting() (n int) {
	stacks := make([]byte, 4<<20)
	for s := range bytes.SplitSeq(stacks[:runtime.Stack(stacks, true)], []byte("\n\n")) {
		head, _, _ := bytes.Cut(s, []byte("\n"))
		in := func(what string) bool { return bytes.Contains(s, []byte(what)) }
		if bytes.Contains(head, []byte("[select")) && in("TestWritersTakeTurns") && in("store.(*Store).Write(") && !in("require.Eventually") {
			n++
		}
	}
	return n
}
