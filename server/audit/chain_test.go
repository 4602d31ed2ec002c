package audit

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
)

// The encoding never changes: what was sealed by an older release has to verify with a newer one.
func TestTheEncodingIsFrozen(t *testing.T) {
	row := models.AuditRow{
		ID: "e_01", At: time.UnixMilli(1_700_000_000_123), Actor: "device/664123086043511412", AccountID: "a_01", Action: "group.join",
		Object: "group/g_01", Result: "refused", Reason: "not-found", Source: netip.MustParsePrefix("198.51.100.0/24"), RequestID: "r1", Count: 1, Seq: 7,
	}
	const want = "21fa1fd8bb2c8992e072af89099ab08e2fa8c2a1bfdfb06585244c933b71cb8a" // computed by hand in another language
	if got := next("00ff", row); got != want {
		t.Fatalf("hash %s, want %s", got, want)
	}
}

// Two different rows never have the same encoding, wherever one field ends and the next begins.
func TestTheEncodingIsInjective(t *testing.T) {
	text := rapid.StringMatching(`[ab/]{0,3}`)
	draw := rapid.Custom(func(r *rapid.T) models.AuditRow {
		return models.AuditRow{
			ID: models.AuditID(text.Draw(r, "id")), At: time.UnixMilli(rapid.Int64Range(0, 2).Draw(r, "at")), Actor: text.Draw(r, "actor"),
			AccountID: models.AccountID(text.Draw(r, "account")), Action: text.Draw(r, "action"), Object: text.Draw(r, "object"),
			Result: text.Draw(r, "result"), Reason: text.Draw(r, "reason"), RequestID: text.Draw(r, "request"), Seq: rapid.Int64Range(1, 2).Draw(r, "seq"),
			Count:  rapid.Int64Range(1, 3).Draw(r, "count"),
			Source: rapid.SampledFrom([]netip.Prefix{{}, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/64")}).Draw(r, "source"),
		}
	})
	rapid.Check(t, func(r *rapid.T) {
		a, b := draw.Draw(r, "a"), draw.Draw(r, "b")
		if (a == b) != (string(encode(a)) == string(encode(b))) {
			r.Fatalf("%+v and %+v", a, b)
		}
		before := text.Draw(r, "before")
		if next(before, a) == next(before+"0", a) {
			r.Fatal("the hash does not depend on the one before")
		}
	})
}
