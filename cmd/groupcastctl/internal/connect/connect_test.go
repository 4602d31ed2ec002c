package connect_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/connect"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// TestALostAnswerIsAskedForAgain ends the first two connections after the request came: what has a key is sent again with that key and
// body, what has none is not.
func TestALostAnswerIsAskedForAgain(t *testing.T) {
	dir, err := os.MkdirTemp("", "gc-") // the path of a unix socket must stay short
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
	require.NoError(t, err)
	var mu sync.Mutex
	var keys, names []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // a test's
		body := make([]byte, 100)
		n, _ := r.Body.Read(body)
		mu.Lock()
		defer mu.Unlock()
		keys, names = append(keys, r.Header.Get("Idempotency-Key")), append(names, string(body[:n]))
		if len(keys) < 3 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"accountId":"a_1","name":"Smith"}`))
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { _ = server.Close(); <-served }()

	c, err := connect.Admin(dir)
	require.NoError(t, err)
	_, err = c.CreateTokenWithResponse(t.Context(), adminapi.TokenRequest{})
	require.Error(t, err)
	mu.Lock()
	require.Len(t, keys, 1, "nothing without a key is sent twice")
	keys, names = nil, nil
	mu.Unlock()
	key := "0123456789abcdef"
	r, err := c.CreateAccountWithResponse(t.Context(), &adminapi.CreateAccountParams{IdempotencyKey: &key}, adminapi.AccountRequest{Name: "Smith"})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, []string{key, key, key}, keys)
	assert.Equal(t, names[0], names[2])
	assert.Contains(t, names[2], "Smith")
}
