package registrations_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/models"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// reached lists a group's destinations as "number name address".
func reached(g models.GatewayGroup) []string {
	var all []string
	for _, d := range g.Destinations {
		to := d.IPv4
		if !to.IsValid() {
			to = d.IPv6
		}
		all = append(all, fmt.Sprintf("%d %s %s", d.Number, d.Name, to))
	}
	return all
}
