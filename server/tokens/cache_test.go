package tokens_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/tokens"
)

// counted counts the signatures that were checked.
type counted struct {
	*tokens.Verifier

	n int
}

func (c *counted) Verify(token string) (tokens.Subject, error) {
	c.n++
	return c.Verifier.Verify(token)
}

// TestARememberedToken: a token that comes again costs no signature for a minute, and is good for not a moment longer than one that isn't remembered.
func TestARememberedToken(t *testing.T) {
	l := newLab(t)
	checked := &counted{Verifier: l.verifier}
	cache := tokens.NewCache(checked, func() time.Time { return l.now })
	long := l.device(t, camera)
	fresh, err := l.verifier.Verify(long)
	require.NoError(t, err)
	for range 3 {
		s, err := cache.Verify(long)
		require.NoError(t, err)
		assert.Equal(t, fresh, s)
	}
	assert.Equal(t, 1, checked.n)
	_, err = cache.Verify(long[:len(long)-2])
	require.Error(t, err, "another one is another one")
	_, err = cache.Verify(long[:len(long)-2])
	require.Error(t, err)
	assert.Equal(t, 3, checked.n, "what is refused is not remembered")
	l.now = l.now.Add(tokens.CacheTime)
	_, err = cache.Verify(long)
	require.NoError(t, err)
	assert.Equal(t, 4, checked.n, "after a minute it is checked again")

	short, err := l.issuer.Device(camera, tokens.Grant{Life: 20 * time.Second})
	require.NoError(t, err)
	_, err = cache.Verify(short)
	require.NoError(t, err)
	for passed := time.Duration(0); passed < tokens.CacheTime; passed += time.Second {
		_, want := l.verifier.Verify(short)
		_, err := cache.Verify(short)
		require.Equal(t, want, err, "after %s", passed)
		l.now = l.now.Add(time.Second)
	}
	_, err = cache.Verify(short)
	require.Error(t, err)
}
