package keys_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func states(t *testing.T, r *keys.Ring) (kids []string, list []store.SigningKeyState) {
	t.Helper()
	all, err := r.List(context.Background())
	require.NoError(t, err)
	for _, k := range all {
		kids, list = append(kids, k.KID), append(list, k.State)
	}
	return kids, list
}

func TestAKeyGoesThroughItsLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		ctx := context.Background()
		k := kek(t, filepath.Join(t.TempDir(), "kek"))
		r, err := keys.Load(ctx, db.Store, k, keys.Options{})
		require.NoError(t, err)
		first := r.Signer().KID

		// It is replaced after 90 days, and the next one is published a day before.
		db.Advance(t, keys.RotateAfter-keys.PublishBefore-time.Minute)
		require.NoError(t, r.Maintain(ctx))
		_, list := states(t, r)
		assert.Equal(t, []store.SigningKeyState{"active"}, list)
		db.Advance(t, 2*time.Minute)
		require.NoError(t, r.Maintain(ctx))
		kids, list := states(t, r)
		assert.Equal(t, []store.SigningKeyState{"active", "next"}, list)
		assert.Equal(t, first, r.Signer().KID, "what was just published doesn't sign")
		set, err := r.KeySet()
		require.NoError(t, err)
		assert.Len(t, set, 2)
		db.Advance(t, keys.PublishBefore-time.Minute)
		require.NoError(t, r.Maintain(ctx))
		assert.Equal(t, first, r.Signer().KID)
		db.Advance(t, 2*time.Minute)
		require.NoError(t, r.Maintain(ctx))
		_, list = states(t, r)
		assert.Equal(t, []store.SigningKeyState{"retiring", "active"}, list)
		assert.Equal(t, kids[1], r.Signer().KID)
		_, known := r.Public(first)
		assert.True(t, known, "tokens that it signed are still good")

		// It goes when its last token has ended.
		db.Advance(t, keys.KeepAfter-time.Minute)
		require.NoError(t, r.Maintain(ctx))
		_, known = r.Public(first)
		assert.True(t, known)
		db.Advance(t, 2*time.Minute)
		require.NoError(t, r.Maintain(ctx))
		_, known = r.Public(first)
		assert.False(t, known)
	})
}

func TestAnotherAlgorithmTakesOverAfterADay(t *testing.T) {
	for _, alg := range keys.Algs() {
		db := storetest.SQLite(t)
		ctx := context.Background()
		k := kek(t, filepath.Join(t.TempDir(), "kek"))
		_, err := keys.Load(ctx, db.Store, k, keys.Options{Alg: keys.AlgES256})
		require.NoError(t, err)
		r, err := keys.Load(ctx, db.Store, k, keys.Options{Alg: alg})
		require.NoError(t, err)
		assert.Equal(t, keys.AlgES256, r.Signer().Alg)
		db.Advance(t, keys.PublishBefore+time.Minute)
		require.NoError(t, r.Maintain(ctx))
		assert.Equal(t, alg, r.Signer().Alg)
	}
}

func TestAReplicaKnowsAKeyThatAnotherForced(t *testing.T) {
	db := storetest.Postgres(t)
	ctx := context.Background()
	k := kek(t, filepath.Join(t.TempDir(), "kek"))
	one, err := keys.Load(ctx, db.Store, k, keys.Options{})
	require.NoError(t, err)
	other, err := keys.Load(ctx, db.Replica(t), k, keys.Options{})
	require.NoError(t, err)
	require.NoError(t, one.Rotate(ctx, true))
	_, known := other.Public(one.Signer().KID)
	assert.True(t, known)
}
