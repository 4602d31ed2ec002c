package table_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// BenchmarkReplaceAndDerive is one change of a gateway with 22 groups of 8 destinations, from what the server said to the
// effective table.
func BenchmarkReplaceAndDerive(b *testing.B) {
	info := models.GroupInformation{GatewayID: gateway.ID, Epoch: "e"}
	for g := range 22 {
		group := models.GatewayGroup{Group: models.Group{
			ID: models.GroupID(fmt.Sprintf("g_%d", g)), Name: fmt.Sprintf("n%d", g), IP: netip.AddrFrom4([4]byte{172, 168, 0, byte(233 + g)}), Generation: 1,
		}}
		for d := range 8 {
			group.Destinations = append(group.Destinations, models.GatewayDestination{
				Policy:         models.PolicyExempt,
				RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d_%d", g, d)), IPv4: netip.MustParseAddr("192.0.2.1"),
			})
		}
		info.Groups = append(info.Groups, group)
	}
	db, err := table.Open()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		info.Revision++
		if err := db.Replace(info); err != nil {
			b.Fatal(err)
		}
		if _, err := table.Derive(db.Read(), table.Inputs{ValidUntil: time.Now()}); err != nil {
			b.Fatal(err)
		}
	}
}
