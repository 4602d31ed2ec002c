package duplicator_test

import (
	"testing"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/backendtest"
)

func TestBackend(t *testing.T) { backendtest.Run(t, socketBackend()) }

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
