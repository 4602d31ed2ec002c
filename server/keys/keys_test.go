package keys_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func kek(t *testing.T, path string) *keys.KEK {
	t.Helper()
	k, err := keys.LoadOrCreateKEK(path)
	require.NoError(t, err)
	return k
}

func TestTheKeyFileIsMadeOnceAndForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := keys.LoadOrCreateKEK(path)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(before)))
	require.NoError(t, err)
	assert.Len(t, key, 32)
	kek(t, path)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, before, after)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing is left beside it")
}

func TestAKeyFileThatIsNotUsableSaysSo(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"too short":             {base64.StdEncoding.EncodeToString(make([]byte, 31)), 0o600, "32 bytes in base64"},
		"not base64":            {"hunter2 hunter2 hunter2", 0o600, "32 bytes in base64"},
		"empty":                 {"", 0o600, "32 bytes in base64"},
		"readable for everyone": {good, 0o644, "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kek")
			require.NoError(t, os.WriteFile(path, []byte(c.text), 0o600))
			require.NoError(t, os.Chmod(path, c.mode))
			_, err := keys.LoadOrCreateKEK(path)
			require.Error(t, err)
			assert.Contains(t, err.Error(), path)
			assert.Contains(t, err.Error(), c.want)
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
	_, err := keys.LoadOrCreateKEK(filepath.Join(t.TempDir(), "no", "such", "directory", "kek"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	path := filepath.Join(t.TempDir(), "kek")
	require.NoError(t, os.WriteFile(path, []byte(good+"\n"), 0o440), "as systemd shows a credential")
	kek(t, path)
}

func TestReplicasThatRaceEndWithTheSameKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		k := kek(t, filepath.Join(t.TempDir(), "kek"))
		const replicas = 8
		rings := make([]*keys.Ring, replicas)
		var wg sync.WaitGroup
		for i := range replicas {
			wg.Go(func() {
				ring, err := keys.Load(context.Background(), db.Store, k, keys.Options{})
				assert.NoError(t, err)
				rings[i] = ring
			})
		}
		wg.Wait()
		require.False(t, t.Failed())
		sealed, err := rings[0].Seal("edid", "aud", []byte("12345678"))
		require.NoError(t, err)
		for _, r := range rings {
			assert.Equal(t, rings[0].Signer(), r.Signer())
			plain, err := r.Open("edid", "aud", sealed)
			assert.NoError(t, err)
			assert.Equal(t, "12345678", string(plain))
		}
		assert.Len(t, db.Ints(t, "SELECT version FROM sealing_keys"), 1)
		assert.Len(t, db.Texts(t, "SELECT kid FROM signing_keys"), 1)
	})
}

func TestKeysAreSealedAtRest(t *testing.T) {
	db := storetest.SQLite(t)
	ctx := context.Background()
	own := kek(t, filepath.Join(t.TempDir(), "kek"))
	ring, err := keys.Load(ctx, db.Store, own, keys.Options{})
	require.NoError(t, err)
	rows, _, err := db.SigningKeys(ctx)
	require.NoError(t, err)
	assert.NotContains(t, string(rows[0].PrivateSealed), string(ring.Signer().Private.(ed25519.PrivateKey).Seed()))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		assert.Equal(t, "signing key "+ring.Signer().KID, fmt.Sprintf(verb, ring.Signer()))
	}

	other := filepath.Join(t.TempDir(), "other-kek")
	_, err = keys.Load(ctx, db.Store, kek(t, other), keys.Options{})
	require.Error(t, err)
	assert.Contains(t, err.Error(), other)
	assert.Contains(t, err.Error(), "use the file that belongs to this database")

	// One sealed key can't be put in another's place.
	db.Exec(t, "UPDATE signing_keys SET kid = 'AAAAAAAAAAAAAAAA'")
	_, err = keys.Load(ctx, db.Store, own, keys.Options{})
	assert.Error(t, err)
}

func TestSealedValuesBelongToOneClaimAndAudience(t *testing.T) {
	db := storetest.SQLite(t)
	ring, err := keys.Load(context.Background(), db.Store, kek(t, filepath.Join(t.TempDir(), "kek")), keys.Options{})
	require.NoError(t, err)
	sealed, err := ring.Seal("edid", "aud", []byte("12345678"))
	require.NoError(t, err)
	again, err := ring.Seal("edid", "aud", []byte("12345678"))
	require.NoError(t, err)
	assert.Equal(t, sealed, again)
	assert.LessOrEqual(t, len(sealed), 34)
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	require.NoError(t, err)
	for i := range raw {
		changed := append([]byte{}, raw...)
		changed[i] ^= 1
		_, err := ring.Open("edid", "aud", base64.RawURLEncoding.EncodeToString(changed))
		assert.ErrorIs(t, err, keys.ErrSealed, "byte %d", i)
	}
	for _, c := range [][3]string{
		{"eacc", "aud", sealed},
		{"edid", "other", sealed},
		{"edi", "d\x00aud", sealed},
		{"edid", "aud", ""},
		{"edid", "aud", sealed + "="},
		{"edid", "aud", sealed[:8]},
		{"edid", "aud", "!"},
	} {
		_, err := ring.Open(c[0], c[1], c[2])
		assert.ErrorIs(t, err, keys.ErrSealed, "%v", c)
	}
}

// The vector of RFC 8037, appendix A.3.
func TestKIDIsTheThumbprint(t *testing.T) {
	public, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	require.NoError(t, err)
	kid, err := keys.KID(ed25519.PublicKey(public))
	require.NoError(t, err)
	assert.Equal(t, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"[:16], kid)
}
