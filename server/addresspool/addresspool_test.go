package addresspool_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/addresspool"
)

const maxStale = 900 * time.Second

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// row makes an address .n of the pool.
func row(n byte, change ...func(*models.Address)) models.Address {
	a := models.Address{IP: at(n), State: models.AddressFree}
	for _, c := range change {
		c(&a)
	}
	return a
}

func at(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 1, n}) }

func allocated(group string) func(*models.Address) {
	return func(a *models.Address) { a.State, a.LastGroupName, a.Generation = models.AddressAllocated, group, 1 }
}

func quarantined(group string, ago time.Duration, revision int64) func(*models.Address) {
	return func(a *models.Address) {
		a.State, a.LastGroupName, a.Generation = models.AddressQuarantined, group, 1
		a.ReleasedAt, a.ReleasedRevision = start.Add(-ago), revision
	}
}

func TestPick(t *testing.T) {
	const over = maxStale + 60*time.Second // the cooldown
	polling := addresspool.NewPolicy(maxStale, 7, start.Add(-time.Minute), start)
	for name, c := range map[string]struct {
		rows   []models.Address
		want   byte
		policy addresspool.Policy
		picked byte
		code   models.Code
	}{
		"the lowest of the unused": {rows: []models.Address{row(231), row(230), row(232)}, picked: 230},
		"one never used before one used long ago": {
			rows: []models.Address{row(230, quarantined("x", 10*over, 1)), row(231)}, picked: 231,
		},
		"the longest idle": {
			rows: []models.Address{row(230, quarantined("x", over+1, 1)), row(231, quarantined("y", over+2, 1))}, picked: 231,
		},
		"not one that is allocated": {rows: []models.Address{row(230, allocated("x")), row(231)}, picked: 231},
		"not one that cools down":   {rows: []models.Address{row(230, quarantined("x", over-1, 1)), row(231, allocated("y"))}, code: models.CodePoolExhausted},
		"cooled down to the moment": {rows: []models.Address{row(230, quarantined("x", over, 7))}, picked: 230},
		"not one that the gateway may still forward for": {
			rows: []models.Address{row(230, quarantined("x", over, 8))}, code: models.CodePoolExhausted,
		},
		"unless the gateway is silent": {
			rows: []models.Address{row(230, quarantined("x", over, 8))}, picked: 230,
			policy: addresspool.NewPolicy(maxStale, 7, start.Add(-maxStale), start),
		},
		"or never polled": {
			rows: []models.Address{row(230, quarantined("x", over, 8))}, picked: 230, policy: addresspool.NewPolicy(maxStale, 0, time.Time{}, start),
		},
		"its own at once, before any other": {
			rows: []models.Address{row(230), row(231, quarantined("g", 0, 99))}, picked: 231,
		},
		"of its own the last one": {
			rows: []models.Address{row(230, quarantined("g", 20, 1)), row(231, quarantined("g", 10, 1))}, picked: 231,
		},
		"not its own while another group has it": {
			rows: []models.Address{row(230, allocated("g")), row(231)}, picked: 231,
		},
		"the one asked for":                       {rows: []models.Address{row(230), row(231)}, want: 231, picked: 231},
		"the one asked for instead of its own":    {rows: []models.Address{row(230, quarantined("g", 0, 1)), row(231)}, want: 231, picked: 231},
		"its own if asked for":                    {rows: []models.Address{row(230, quarantined("g", 0, 99))}, want: 230, picked: 230},
		"not one asked for that is in quarantine": {rows: []models.Address{row(230, quarantined("x", 0, 1)), row(231)}, want: 230, code: models.CodeGroupIPTaken},
		"not one asked for that is allocated":     {rows: []models.Address{row(230, allocated("x")), row(231)}, want: 230, code: models.CodeGroupIPTaken},
		"not one asked for outside the pool":      {rows: []models.Address{row(230)}, want: 5, code: models.CodeNotFound},
		"nothing of an empty pool":                {code: models.CodePoolExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			policy, want := c.policy, netip.Addr{}
			if policy == (addresspool.Policy{}) {
				policy = polling
			}
			if c.want != 0 {
				want = at(c.want)
			}
			got, err := addresspool.Pick(c.rows, want, "g", start, policy)
			if c.code != "" {
				var refusal *models.Error
				require.ErrorAs(t, err, &refusal)
				require.Equal(t, c.code, refusal.Code)
				return
			}
			require.NoError(t, err)
			require.Equal(t, at(c.picked), got.IP)
			require.Equal(t, models.AddressAllocated, got.State)
			require.Equal(t, "g", got.LastGroupName)
			for _, r := range c.rows {
				if r.IP == got.IP {
					require.Equal(t, r.Generation+1, got.Generation)
				}
			}
		})
	}
}

func TestExhaustedSaysWhenToComeBack(t *testing.T) {
	rows := []models.Address{row(230, allocated("x")), row(231, quarantined("y", 60*time.Second, 7)), row(232, quarantined("z", 2000*time.Second, 8))}
	policy := addresspool.NewPolicy(maxStale, 7, start.Add(-time.Minute), start)
	_, err := addresspool.Pick(rows, netip.Addr{}, "g", start, policy)
	var refusal *models.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, map[string]any{
		"poolSize": 3, "allocated": 1, "quarantined": 2,
		// .232 has cooled down but isn't acknowledged: it is free for sure when the gateway counts as silent, in 840 s; .231 in 900 s.
		"nextFreeAt": start.Add(840 * time.Second).Format(time.RFC3339), "retryAfter": 840,
	}, refusal.Fields)
}

func TestWithin(t *testing.T) {
	rows := []models.Address{row(229), row(232), row(230), row(233)}
	got := addresspool.Within(rows, models.AddrRange{First: at(230), Last: at(232)})
	require.Equal(t, []models.Address{row(230), row(232)}, got)
	require.Len(t, rows, 4)
}

// TestNeverTwoGroups runs random histories of groups beginning and ending, time passing, and a gateway that polls or is silent and
// whose answers get lost now and then.
func TestNeverTwoGroups(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type holder struct {
			ip         netip.Addr
			generation int64
		}
		size := rapid.IntRange(1, 4).Draw(t, "pool size")
		rows := make([]models.Address, size)
		for i := range rows {
			rows[i] = row(byte(230 + i))
		}
		var (
			now      = start
			revision = int64(1)
			acked    int64
			polled   time.Time
			live     = map[string]int{}    // group name → index of its row
			lives    = map[holder]string{} // who ever had an address in a generation
			held     int64                 // the revision that the gateway's next poll will acknowledge
			released = map[netip.Addr]struct {
				by       string
				at       time.Time
				revision int64
			}{}
		)
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				name := fmt.Sprint("g", rapid.IntRange(0, 5).Draw(t, "name"))
				want := netip.Addr{}
				if rapid.Bool().Draw(t, "asks") {
					want = at(byte(229 + rapid.IntRange(0, size+1).Draw(t, "for")))
				}
				if _, ok := live[name]; ok {
					t.Skip("the group lives")
				}
				got, err := addresspool.Pick(rows, want, name, now, addresspool.NewPolicy(maxStale, acked, polled, now))
				if err != nil {
					if _, ok := errors.AsType[*models.Error](err); !ok {
						t.Fatalf("not a refusal: %v", err)
					}
					return
				}
				for other, i := range live {
					if rows[i].IP == got.IP {
						t.Fatalf("%s belongs to %s", got.IP, other)
					}
				}
				if was := released[got.IP]; was.by != "" && was.by != name {
					if now.Sub(was.at) < maxStale+60*time.Second {
						t.Fatalf("%s was released by %s only %s ago", got.IP, was.by, now.Sub(was.at))
					}
					if acked < was.revision && now.Sub(polled) < maxStale {
						t.Fatalf("the gateway, alive, may still copy %s for %s", got.IP, was.by)
					}
				}
				h := holder{got.IP, got.Generation}
				if other, ok := lives[h]; ok {
					t.Fatalf("%v was %s's already", h, other)
				}
				lives[h] = name
				for i := range rows {
					if rows[i].IP == got.IP {
						rows[i], live[name] = got, i
					}
				}
				revision++
			},
			"end": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("no group lives")
				}
				name := rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(t, "name")
				revision++
				a := &rows[live[name]]
				a.State, a.ReleasedAt, a.ReleasedRevision = models.AddressQuarantined, now, revision
				was := released[a.IP]
				was.by, was.at, was.revision = name, now, revision
				released[a.IP] = was
				delete(live, name)
			},
			"poll": func(t *rapid.T) {
				polled, acked = now, held
				if rapid.Bool().Draw(t, "answer arrives") {
					held = revision
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 2000).Draw(t, "seconds")) * time.Second)
			},
			"": func(t *rapid.T) {
				pool := addresspool.Count(rows, now, addresspool.NewPolicy(maxStale, acked, polled, now))
				if pool.Size != size || pool.Allocated != len(live) || pool.Allocated+pool.Quarantined > size {
					t.Fatalf("%+v with %d live groups", pool, len(live))
				}
				if (pool.Quarantined > 0) != !pool.NextFreeAt.IsZero() {
					t.Fatalf("%+v: nextFreeAt must be there exactly if an address is in quarantine", pool)
				}
			},
		})
	})
}
