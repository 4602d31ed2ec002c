package receiver_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/openapi/clientauth"
	"github.com/groupcast/groupcast/receiver"
)

// A service receives the stream of one group until it has enough.
func ExampleJoin() {
	credentialFile, server := exampleHome()

	credential, err := clientauth.Open(credentialFile, server, clientauth.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := client.NewClientWithResponses(server, client.WithHTTPClient(&http.Client{Transport: credential.Transport()}))
	if err != nil {
		fmt.Println(err)
		return
	}
	enough, stop := context.WithCancel(context.Background())
	var first sync.Once
	r, err := receiver.Join(enough, receiver.Config{
		Client: c,
		Member: api.RegistrationRequest{Type: models.MemberService, ID: 2908757376510572177, GroupName: "groupcast1"},
		Listen: netip.MustParseAddrPort("127.201.8.20:0"),
		Media: func(d receiver.Datagram) error {
			first.Do(func() {
				fmt.Printf("%s\n", d.Payload)
				stop()
			})
			return nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := r.Wait(); err != nil { // it leaves when its context ends
		fmt.Println(err)
		return
	}
	fmt.Println("received something:", r.Summary().Datagrams > 0)
	// Output:
	// media
	// received something: true
}
