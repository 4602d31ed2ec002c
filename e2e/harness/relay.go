package harness

import (
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// RelayOptions says how a relay is started.
type RelayOptions struct {
	Server *Server
	// In is the relay's network namespace, in which the server's URL is reached.
	In   *netlab.Namespace
	Name string
	// Address is where gateways reach it, and where copies leave from.
	Address string
	// PlainHTTP lets it speak to a server of its network without TLS.
	PlainHTTP bool
}

// StartRelay has the operator enrol a relay for all premises, and starts it.
func StartRelay(t testing.TB, o RelayOptions) *Process {
	t.Helper()
	s := o.Server
	ticket, err := s.Admin.CreateRelayWithResponse(t.Context(), nil, adminapi.RelayRequest{Name: o.Name})
	require.NoError(t, err)
	require.NotNil(t, ticket.JSON200, "%s", ticket.Body)
	all := true
	may, err := s.Admin.SetRelayPremisesWithResponse(t.Context(), ticket.JSON200.RelayID, adminapi.RelayPremisesRequest{All: &all})
	require.NoError(t, err)
	require.Less(t, may.StatusCode(), 300, "%s", may.Body)
	dir := t.TempDir()
	credential := filepath.Join(dir, "credential")
	_, err = clientauth.Enrolment{
		Path: credential, Server: s.URL, Options: clientauth.Options{Base: s.HTTP.Transport, AllowPlainHTTP: o.PlainHTTP},
	}.UseTicket(t.Context(), ticket.JSON200.Ticket)
	require.NoError(t, err)
	args := []string{
		"run", "--mode", "relay", "--server", s.URL, "--credential", credential, "--relay-id", ticket.JSON200.RelayID.String(),
		"--tunnel-endpoint", o.Address + ":51820", "--uplink-address", o.Address, "--state-dir", filepath.Join(dir, "state"), "--metrics-listen", "",
	}
	if o.PlainHTTP {
		args = append(args, "--allow-plain-http")
	}
	return Start(t, o.In, "gateway-agent", exec.Command(Bin(t, "gateway-agent"), args...))
}

// Reach lets programs in a namespace reach what listens at a loopback address in another one, at the same address.
func Reach(t testing.TB, from, to *netlab.Namespace, address string) {
	t.Helper()
	var listener net.Listener
	var err error
	from.Do(func() { listener, err = net.Listen("tcp", address) })
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			var far net.Conn
			to.Do(func() { far, err = net.Dial("tcp", address) })
			if err != nil {
				near.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					defer way[0].Close()
					_, _ = io.Copy(way[0], way[1])
				}()
			}
		}
	}()
}
