package passwords_test

import (
	"context"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"

	"github.com/alexedwards/argon2id"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/passwords"
)

const good = "correct horse battery"

// cheap keeps the tests quick; the cost itself is tested once.
var cheap = passwords.Cost{MemoryKiB: 64, Iterations: 1, Parallelism: 1}

func newHasher(t testing.TB, cost passwords.Cost, concurrent int) *passwords.Hasher {
	t.Helper()
	h, err := passwords.NewHasher(cost, concurrent)
	require.NoError(t, err)
	return h
}

func TestAPasswordMatchesItsHashOnly(t *testing.T) {
	h := newHasher(t, passwords.Recommended, 0)
	encoded, err := h.Hash(t.Context(), good)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(encoded, "$argon2id$v=19$m=19456,t=2,p=1$"), encoded)
	assert.NotContains(t, encoded, "horse")
	out, err := h.Check(t.Context(), good, encoded)
	require.NoError(t, err)
	assert.Equal(t, passwords.Outcome{Match: true}, out)
	for _, wrong := range []string{"", "x", good + " ", " " + good, strings.ToUpper(good), good + "\x00"} {
		out, err := h.Check(t.Context(), wrong, encoded)
		require.NoError(t, err)
		assert.Equal(t, passwords.Outcome{}, out, "%q", wrong)
	}
	other, err := h.Hash(t.Context(), good)
	require.NoError(t, err)
	assert.NotEqual(t, encoded, other, "each hash has its own salt")
}

func TestAHashFromTheReferenceProgram(t *testing.T) {
	// echo -n "password" | argon2 somesalt -id -t 2 -m 16 -p 4 -l 24, from the tests of the reference implementation.
	const encoded = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	h := newHasher(t, cheap, 0)
	out, err := h.Check(t.Context(), "password", encoded)
	require.NoError(t, err)
	assert.Equal(t, passwords.Outcome{Match: true, Rehash: true}, out)
	out, err = h.Check(t.Context(), "Password", encoded)
	require.NoError(t, err)
	assert.Equal(t, passwords.Outcome{}, out, "a wrong password is never hashed anew")
}

func TestAHashOfAnotherCostIsToBeMadeAnew(t *testing.T) {
	old := newHasher(t, cheap, 0)
	encoded, err := old.Hash(t.Context(), good)
	require.NoError(t, err)
	for _, cost := range []passwords.Cost{{MemoryKiB: 128, Iterations: 1, Parallelism: 1}, {MemoryKiB: 64, Iterations: 2, Parallelism: 1}, {MemoryKiB: 64, Iterations: 1, Parallelism: 2}} {
		out, err := newHasher(t, cost, 0).Check(t.Context(), good, encoded)
		require.NoError(t, err)
		assert.Equal(t, passwords.Outcome{Match: true, Rehash: true}, out)
	}
}

func TestAttackUnknownNamesCostTheSameWork(t *testing.T) {
	h := newHasher(t, cheap, 0)
	encoded, err := h.Hash(t.Context(), good)
	require.NoError(t, err)
	// Whatever is typed, both kinds of name cost the same number of hashes, all of one cost.
	for _, typed := range []string{good, "wrong password", "", "x", strings.Repeat("x", 2000), "line\nbreak", "\xff"} {
		var cost [2]uint64
		for i, stored := range []string{encoded, ""} {
			before := h.Hashes()
			out, err := h.Check(t.Context(), typed, stored)
			require.NoError(t, err)
			cost[i] = h.Hashes() - before
			assert.Equal(t, stored != "" && typed == good, out.Match)
			assert.False(t, out.Rehash)
		}
		assert.Equal(t, cost[0], cost[1], "%q", typed)
	}
}

func TestWhatMayBecomeAPassword(t *testing.T) {
	h := newHasher(t, cheap, 0)
	for name, tc := range map[string]struct {
		typed string
		want  string // in the refusal; empty: taken
	}{
		"12 characters":       {"abcdefghijkl", ""},
		"12 code points":      {strings.Repeat("ß", 12), ""},
		"128 emoji":           {strings.Repeat("🎥", 128), ""},
		"joined emoji":        {strings.Repeat("👨‍👩‍👧❤️", 4), ""},
		"only spaces":         {strings.Repeat(" ", 12), ""},
		"11 characters":       {"abcdefghijk", "shorter"},
		"empty":               {"", "shorter"},
		"short when joined":   {strings.Repeat("e\u0301", 11), "shorter"},
		"129 characters":      {strings.Repeat("x", 129), "longer"},
		"a megabyte":          {strings.Repeat("x", 1<<20), "longer"},
		"line break":          {"abcdefghijkl\n", "can't be typed"},
		"NUL":                 {"abcdefghijkl\x00", "can't be typed"},
		"broken UTF-8":        {"abcdefghijkl\xff", "can't be typed"},
		"private use":         {"abcdefghijkl\ue000", "can't be typed"},
		"unassigned":          {"abcdefghijkl\U000e0fff", "can't be typed"},
		"half of a pair":      {"abcdefghijkl\xed\xa0\x80", "can't be typed"},
		"paragraph separator": {"abcdefghijkl\u2029", "can't be typed"},
	} {
		t.Run(name, func(t *testing.T) {
			before := h.Hashes()
			encoded, err := h.Hash(t.Context(), tc.typed)
			if tc.want == "" {
				require.NoError(t, err)
				out, err := h.Check(t.Context(), tc.typed, encoded)
				require.NoError(t, err)
				assert.True(t, out.Match)
				return
			}
			var refusal *models.Error
			require.ErrorAs(t, err, &refusal)
			assert.Equal(t, models.CodeBadRequest, refusal.Code)
			assert.Contains(t, refusal.Detail, tc.want)
			assert.NotContains(t, refusal.Detail, "abc")
			assert.Equal(t, before, h.Hashes(), "a refusal costs no hash")
		})
	}
}

func TestTheSameCharactersFromAnotherKeyboard(t *testing.T) {
	h := newHasher(t, cheap, 0)
	encoded, err := h.Hash(t.Context(), "caf\u00e9 au lait \u212b")
	require.NoError(t, err)
	for typed, same := range map[string]bool{
		"cafe\u0301 au lait A\u030a":         true,  // decomposed
		"caf\u00e9\u00a0au\u3000lait \u00c5": true,  // other spaces, the other angstrom
		"cafe au lait A":                     false, // accents matter
		"\uff43af\u00e9 au lait \u212b":      false, // a full-width letter is another character
	} {
		out, err := h.Check(t.Context(), typed, encoded)
		require.NoError(t, err)
		assert.Equal(t, same, out.Match, "%q", typed)
	}
}

func TestHostileStoredHashes(t *testing.T) {
	h := newHasher(t, cheap, 0)
	encoded, err := h.Hash(t.Context(), good)
	require.NoError(t, err)
	before := h.Hashes()
	for name, stored := range map[string]string{
		"not a hash":   good,
		"plain":        "$argon2id$",
		"argon2i":      strings.Replace(encoded, "argon2id", "argon2i", 1),
		"old version":  strings.Replace(encoded, "v=19", "v=16", 1),
		"4 TiB":        strings.Replace(encoded, "m=64", "m=4294967295", 1),
		"2 GiB":        strings.Replace(encoded, "m=64", "m=2097152", 1),
		"no memory":    strings.Replace(encoded, "m=64", "m=0", 1),
		"no passes":    strings.Replace(encoded, "t=1", "t=0", 1),
		"many passes":  strings.Replace(encoded, "t=1", "t=4294967295", 1),
		"no lanes":     strings.Replace(encoded, "p=1", "p=0", 1),
		"many lanes":   strings.Replace(encoded, "p=1", "p=255", 1),
		"empty key":    encoded[:strings.LastIndexByte(encoded, '$')+1],
		"key of bytes": encoded[:strings.LastIndexByte(encoded, '$')+1] + "AAAA",
		"bcrypt":       "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
	} {
		out, err := h.Check(t.Context(), good, stored)
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), "$", name)
		assert.Equal(t, passwords.Outcome{}, out, name)
	}
	assert.Equal(t, before, h.Hashes())
}

func TestCostsOutOfRange(t *testing.T) {
	for _, c := range []passwords.Cost{{}, {MemoryKiB: 7, Iterations: 1, Parallelism: 1}, {MemoryKiB: 64, Parallelism: 1}, {MemoryKiB: 64, Iterations: 1}, {MemoryKiB: 1 << 21, Iterations: 1, Parallelism: 1}} {
		_, err := passwords.NewHasher(c, 0)
		assert.Error(t, err, "%+v", c)
	}
}

func TestWhoeverGivesUpCostsNothing(t *testing.T) {
	h := newHasher(t, cheap, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.Check(ctx, good, "")
	require.ErrorIs(t, err, context.Canceled)
	_, err = h.Hash(ctx, good)
	require.ErrorIs(t, err, context.Canceled)
	var refusal *models.Error
	require.NotErrorAs(t, err, &refusal)
	assert.Zero(t, h.Hashes())
	assert.Zero(t, h.Running(), "nothing is held")
}

// The stated bound: two hundred logins at once take 2 hashes for each core, 19 MiB each, at most as much again that the garbage collector has not
// seen yet, and some slack. Without the limit it would be 200 × 19 MiB = 3.7 GiB.
func TestAttackTwoHundredLoginsAtOnce(t *testing.T) {
	const concurrent = 4
	const bound = 2*concurrent*19<<20 + 64<<20
	cost := passwords.Recommended
	cost.Iterations = 1 // takes the same memory in half the time
	h := newHasher(t, cost, concurrent)
	heap := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64() + s[1].Value.Uint64()
	}
	before := heap()
	var mu sync.Mutex
	var peak uint64
	var running int
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			_, err := h.Check(t.Context(), good, "")
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			peak, running = max(peak, heap()), max(running, h.Running())
		})
	}
	wg.Wait()
	assert.LessOrEqual(t, running, concurrent)
	assert.EqualValues(t, 200, h.Hashes())
	assert.Less(t, peak-min(before, peak), uint64(bound), "heap at its highest")
	t.Logf("200 logins at once: %d MiB of heap at the highest, bound %d MiB", (peak-min(before, peak))>>20, uint64(bound)>>20)
}

func FuzzPassword(f *testing.F) {
	for _, s := range []string{good, "cafe\u0301 au lait \u212b", "\xff", strings.Repeat("🎥", 20), "\u1100\u1161\u11a8\u1100\u1161\u11a8\u1100\u1161\u11a8\u1100\u1161\u11a8"} {
		f.Add(s)
	}
	h := newHasher(f, cheap, 0)
	f.Fuzz(func(t *testing.T, typed string) {
		encoded, err := h.Hash(context.Background(), typed)
		if err != nil {
			return
		}
		if out, err := h.Check(context.Background(), typed, encoded); err != nil || !out.Match {
			t.Fatalf("%q was taken and does not match: %v", typed, err)
		}
		if _, err := argon2id.ComparePasswordAndHash(typed, encoded); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkHash(b *testing.B) {
	h := newHasher(b, passwords.Recommended, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Check(context.Background(), good, ""); err != nil {
			b.Fatal(err)
		}
	}
}
