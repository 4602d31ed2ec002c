package receiver_test

import (
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/openapi/api"
)

// exampleHome is a service with a group, the gateway's agent of that home, and a credential for the service. It stays until the tests end.
func exampleHome() (credentialFile, server string) {
	dir, err := os.MkdirTemp("", "groupcast-example-")
	if err != nil {
		panic(err)
	}
	atEnd(func() { _ = os.RemoveAll(dir) })
	credentialFile = filepath.Join(dir, "credential")
	if err := os.WriteFile(credentialFile, []byte("token"), 0o600); err != nil {
		panic(err)
	}
	service, server, stop := scripted.Open()
	atEnd(stop)
	a := newAgent(secret)
	atEnd(func() { _ = a.conn.Close() })
	service.Groups(api.Group{GroupName: "groupcast1", GroupIP: netip.MustParseAddr("127.201.8.230")})
	service.Say(http.StatusOK, asking(secret, a.sender()))
	return credentialFile, server
}

// ending is what is done after all tests: examples have no cleanup of their own.
var ending []func()

func atEnd(f func()) { ending = append(ending, f) }

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range slices.Backward(ending) {
		f()
	}
	os.Exit(code)
}
