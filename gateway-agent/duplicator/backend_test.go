package duplicator_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/backendtest"
)

func TestBackend(t *testing.T) { backendtest.Run(t, socketBackend()) }

// The suite with a gateway that forwards, the tunnel, and a relay that copies.
func TestRelayBackend(t *testing.T) {
	backendtest.Run(t, backendtest.Backend{OpenRelay: func(t *testing.T, c duplicator.Config, inside duplicator.Inside) backendtest.Relay {
		r, err := duplicator.OpenRelay(c, inside)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}})
}

// docs/requirements.md names cases of TestBackend in quotes.
func TestTheRulesNameCasesThatExist(t *testing.T) {
	doc, err := os.ReadFile("../../docs/requirements.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, _ := strings.Cut(string(doc), "\n## Rules of the data plane\n")
	rules, _, _ = strings.Cut(rules, "\n## ")
	named := regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(rules, -1)
	if len(named) < 10 {
		t.Fatalf("only %d cases are named", len(named))
	}
	cases := backendtest.Cases()
	for _, m := range named {
		if !slices.Contains(cases, m[1]) && !slices.Contains(cases, m[1]+", strip") {
			t.Errorf("TestBackend has no case %q", m[1])
		}
	}
}

func TestSoak(t *testing.T) { backendtest.Soak(t, socketBackend()) }

func socketBackend() backendtest.Backend {
	return backendtest.Backend{Open: func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
		d, err := duplicator.OpenSocket(c)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}}
}
