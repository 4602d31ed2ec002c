package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// enrol makes a device's credential: with a ticket, or with a code that the account holder approves.
func (p *program) enrol() *cobra.Command {
	var device clientauth.Device
	var out, ticketFile string
	cmd := &cobra.Command{
		Use: "enrol", Short: "Enrol this program as a device, and keep its credential in a file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := p.public.Options()
			if err != nil {
				return err
			}
			e := clientauth.Enrolment{Path: out, Server: p.public.Server, Device: device, Options: options}
			if ticketFile != "" {
				if ticketFile == "-" {
					ticketFile = "/dev/stdin"
				}
				ticket, err := os.ReadFile(ticketFile)
				if err != nil {
					return fmt.Errorf("--ticket-file: %w", err)
				}
				c, err := e.UseTicket(cmd.Context(), strings.TrimSpace(string(ticket)))
				if err != nil {
					return err
				}
				return p.enrolled(c)
			}
			client := clientauth.ClientDevice
			if device.Type == "gateway" {
				client = clientauth.ClientGateway
			}
			grant, err := e.AskApproval(cmd.Context(), client, "")
			if err != nil {
				return err
			}
			fmt.Fprintf(p.err, "open %s and type %s\n", grant.VerificationURI, grant.UserCode)
			c, err := grant.Wait(cmd.Context())
			if err != nil {
				return err
			}
			return p.enrolled(c)
		},
	}
	cmd.Long = `Make a key and have it enrolled: with a single-use ticket (--ticket-file), or with a code that the account holder approves at
the service's page /device (or the operator for them: "groupcastctl admin approve"). The key and what the service answered go into a file that only its owner can read; give it to the other commands with --token-file.`
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "the credential `FILE` to write")
	f.StringVar(&ticketFile, "ticket-file", "", "`FILE` with the ticket; - is standard input")
	f.StringVar(&device.Name, "name", "", "what people call the device")
	f.StringVar(&device.Model, "model", "", "the model, for people")
	f.StringVar(&device.Serial, "serial", "", "the serial number, for people")
	f.StringVar(&device.Type, "device-type", "", "what the device is, without a ticket: camera, receiver, phone, tablet, laptop, gateway or other")
	needs(cmd, "out")
	return cmd
}

// login makes the credential of an app that acts for a user.
func (p *program) login() *cobra.Command {
	var out, scope string
	cmd := &cobra.Command{
		Use: "login", Short: "Let this program act for a user, and keep its credential in a file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := p.public.Options()
			if err != nil {
				return err
			}
			e := clientauth.Enrolment{Path: out, Server: p.public.Server, Options: options}
			grant, err := e.AskApproval(cmd.Context(), clientauth.ClientApp, scope)
			if err != nil {
				return err
			}
			fmt.Fprintf(p.err, "open %s and type %s\n", grant.VerificationURI, grant.UserCode)
			_, err = grant.Wait(cmd.Context())
			return err
		},
	}
	cmd.Long = `Make a key and have the user, or the operator for them ("groupcastctl admin approve --user"), approve it with a code. The credential is good until it
isn't used for 30 days, or the user changes the password. With it ("--token-file") "groups" shows the account's groups; nobody registers with it.`
	cmd.Flags().StringVar(&out, "out", "", "the credential `FILE` to write")
	cmd.Flags().StringVar(&scope, "scope", "", "what it may do, separated by spaces (default: all that a user may)")
	needs(cmd, "out")
	return cmd
}

// service writes the credential file of a service.
func (p *program) serviceCredential() *cobra.Command {
	var s clientauth.Service
	var out, secretFile string
	cmd := &cobra.Command{
		Use: "service-credential", Short: "Keep a service's secret, or make its key, in a credential file", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			options, err := p.public.Options()
			if err != nil {
				return err
			}
			if secretFile != "" {
				b, err := os.ReadFile(secretFile)
				if err != nil {
					return fmt.Errorf("--secret-file: %w", err)
				}
				if s.Secret = strings.TrimSpace(string(b)); s.Secret == "" {
					return errors.New("--secret-file: the file is empty")
				}
			}
			s.Server = p.public.Server
			c, err := clientauth.CreateService(out, s, options)
			if err != nil {
				return err
			}
			if jwk := c.PublicKey(); jwk != nil {
				_, err = fmt.Fprintf(p.out, "{\"keys\":[%s]}\n", jwk)
			}
			return err
		},
	}
	cmd.Long = `Write the credential file of a service: with the secret that the operator gave it (--secret-file), or with a new key, whose public half is printed as
a key set for "groupcastctl admin service credential create --jwks".`
	f := cmd.Flags()
	f.StringVar(&s.ClientID, "service", "", "`ID` of the service")
	f.StringVar(&secretFile, "secret-file", "", "`FILE` with the secret")
	f.BoolVar(&s.DPoP, "dpop", false, "bind the service's tokens to its key")
	f.StringVar(&out, "out", "", "the credential `FILE` to write")
	needs(cmd, "service", "out")
	return cmd
}

func (p *program) enrolled(c *clientauth.Client) error {
	name, id := "deviceId", c.DeviceID()
	if c.RelayID() != "" {
		name, id = "relayId", c.RelayID()
	}
	return p.show(map[string]string{"clientId": c.ClientID(), name: id}, func() error {
		return report.Fields(p.out, "clientId", c.ClientID(), name, id)
	})
}
