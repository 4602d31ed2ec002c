package credential_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/credential"
)

func header(t *testing.T, f credential.File) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	require.NoError(t, f.Authorize(t.Context(), r))
	return r.Header.Get("Authorization")
}

func TestANewTokenIsUsedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	f := credential.File(path)
	require.NoError(t, os.WriteFile(path, []byte("aaa.bbb.ccc\n"), 0o600))
	assert.Equal(t, "Bearer aaa.bbb.ccc", header(t, f))

	// Written over, with the same length and within the same clock tick.
	require.NoError(t, os.WriteFile(path, []byte("aaa.bbb.ddd\n"), 0o600))
	assert.Equal(t, "Bearer aaa.bbb.ddd", header(t, f))

	// Replaced by another file, as a careful script does.
	require.NoError(t, os.WriteFile(path+".new", []byte("eee.fff.ggg"), 0o400))
	require.NoError(t, os.Rename(path+".new", path))
	assert.Equal(t, "Bearer eee.fff.ggg", header(t, f))
}

func TestAFileThatOthersCanReadIsRefused(t *testing.T) {
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601} {
		path := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(path, []byte("secret-token"), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		err := credential.File(path).Check()
		require.ErrorContains(t, err, "chmod 600 "+path)
		assert.NotContains(t, err.Error(), "secret-token")
		require.NoError(t, os.Chmod(path, 0o600))
		assert.NoError(t, credential.File(path).Check())
	}
}

func TestWhatIsNoTokenIsRefusedWithoutShowingIt(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct{ content, want string }{
		"empty":       {" \n", "is empty"},
		"with scheme": {"Bearer secret-token", "without scheme"},
		"two lines":   {"secret-token\nsecret-token", "more than a token"},
		"not ASCII":   {"secret-tokén", "more than a token"},
		"too large":   {strings.Repeat("secret-token", 4096), "more than a token"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			require.NoError(t, os.WriteFile(path, []byte(test.content), 0o600))
			err := credential.File(path).Check()
			require.ErrorContains(t, err, test.want)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
	assert.ErrorContains(t, credential.File(filepath.Join(dir, "none")).Check(), "there is no file")
	assert.ErrorContains(t, credential.File(dir).Check(), "not a regular file")
}
