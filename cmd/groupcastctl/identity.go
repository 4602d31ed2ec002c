package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

func (o *operator) ticket() *cobra.Command {
	var premises, kind, device, name, file string
	var pop onOff = true
	cmd := o.command("ticket", "Make a single-use ticket that lets a device enrol", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			request := adminapi.TicketRequest{PremisesID: models.PremisesID(premises), DeviceType: given(models.DeviceType(kind)), Name: given(name)}
			if !pop {
				request.Pop = (*bool)(&pop)
			}
			if device != "" {
				id, err := models.ParseID(device)
				if err != nil {
					return fmt.Errorf("--replace: %w", err)
				}
				request.DeviceID = &id
			}
			r, err := c.CreateTicketWithResponse(ctx, &adminapi.CreateTicketParams{IdempotencyKey: key()}, request)
			if err != nil {
				return err
			}
			t, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.secret(file, t.Ticket, t)
		})
	cmd.Long = `Make a ticket that lets one device of one type enrol in a premises. It is good for 15 minutes and once. The device uses it with
"groupcastctl enrol", or with its own firmware. With --replace it gives a device that lost its key a new one; the device
keeps its registrations.`
	f := cmd.Flags()
	f.StringVar(&premises, "premises", "", "`ID` of the premises")
	f.StringVar(&kind, "type", "", "camera, receiver, phone, tablet, laptop, gateway or other")
	f.StringVar(&device, "replace", "", "`ID` of the device whose lost key is replaced")
	f.StringVar(&name, "name", "", "what people call the new device")
	f.Var(&pop, "pop", "`on|off`: whether the device's tokens must be bound to its key")
	f.StringVar(&file, "out", "", "write the ticket to this `FILE` instead of standard output")
	needs(cmd, "premises")
	cmd.MarkFlagsOneRequired("type", "replace")
	return cmd
}

// secret writes what is shown once: alone to standard output, or into a file that only its owner can read.
func (o *operator) secret(file, text string, document any) error {
	if file == "" {
		return o.show(document, func() error { _, err := fmt.Fprintln(o.out, text); return err })
	}
	if err := renameio.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}

func (o *operator) approve() *cobra.Command {
	var premises, name, user string
	var refuse bool
	cmd := o.command("approve CODE", "Approve a device that shows a code, for its account holder", oneArgument("code"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.DecideDeviceGrantWithResponse(ctx, adminapi.DeviceGrantDecision{
				UserCode: args[0], Approve: !refuse, PremisesID: models.PremisesID(premises), Name: given(name), UserName: given(user),
			})
			if err != nil {
				return err
			}
			g, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(g, func() error {
				return report.Fields(o.out, "status", string(g.Status), "clientId", g.ClientID, "deviceType", text(g.DeviceType), "model", g.Model, "serial", g.Serial,
					"from", g.SourcePrefix)
			})
		})
	cmd.Flags().StringVar(&premises, "premises", "", "`ID` of the premises that the device will be in")
	cmd.Flags().StringVar(&name, "name", "", "what people call the device")
	cmd.Flags().StringVar(&user, "user", "", "for an app: `NAME` of the user it acts for, of the premises' account")
	cmd.Flags().BoolVar(&refuse, "refuse", false, "refuse it")
	needs(cmd, "premises")
	return cmd
}

func (o *operator) identityCreate() *cobra.Command {
	var account, user, issuer, subject string
	cmd := o.command("create", "Let an external issuer's tokens for a subject act for a user", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.CreateIdentityWithResponse(ctx, adminapi.IdentityRequest{AccountID: models.AccountID(account), UserName: user, Issuer: issuer, Subject: subject})
			if err != nil {
				return err
			}
			i, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(i, func() error {
				return report.Fields(o.out, "identityId", i.IdentityID, "issuer", i.Issuer, "subject", i.Subject)
			})
		})
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the user's account")
	cmd.Flags().StringVar(&user, "user", "", "`NAME` that the user logs in with here")
	cmd.Flags().StringVar(&issuer, "issuer", "", "the iss of the issuer's tokens")
	cmd.Flags().StringVar(&subject, "subject", "", "the sub of the user there")
	needs(cmd, "account", "user", "issuer", "subject")
	return cmd
}

func (o *operator) identityDelete() *cobra.Command {
	return o.command("delete ID", "Take an identity from its user", oneArgument("identity id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.DeleteIdentityWithResponse(ctx, args[0])
			if err != nil {
				return err
			}
			return refusal.Check(r, r.HTTPResponse.Header)
		})
}

func (o *operator) credentialCreate() *cobra.Command {
	var name, jwks, file string
	cmd := o.command("create SERVICE", "Give a service a secret, or register its public keys", oneArgument("service id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			request := adminapi.ServiceCredentialRequest{Name: given(name)}
			if jwks != "" {
				b, err := os.ReadFile(jwks)
				if err != nil {
					return fmt.Errorf("--jwks: %w", err)
				}
				request.Jwks = &adminapi.KeySet{}
				if err := json.Unmarshal(b, request.Jwks); err != nil || len(request.Jwks.Keys) == 0 {
					return errors.New("--jwks: the file is not a JSON key set like {\"keys\":[…]}")
				}
			}
			r, err := c.CreateServiceCredentialWithResponse(ctx, models.ServiceID(args[0]), &adminapi.CreateServiceCredentialParams{IdempotencyKey: key()}, request)
			if err != nil {
				return err
			}
			v, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			if v.ClientSecret != nil {
				return o.secret(file, *v.ClientSecret, v)
			}
			return o.show(v, func() error {
				return report.Fields(o.out, "credentialId", v.CredentialID, "serviceId", string(v.ServiceID), "kind", string(v.Kind))
			})
		})
	cmd.Long = `Give a service a credential. Without --jwks a secret is drawn and shown once: the service sends it with client_secret_basic. With --jwks the service
signs its assertions with its own key (private_key_jwt). A service may have several, so that one can be replaced without a gap.`
	cmd.Flags().StringVar(&name, "name", "", "what the credential is for")
	cmd.Flags().StringVar(&jwks, "jwks", "", "`FILE` with the service's public keys, Ed25519 or P-256")
	cmd.Flags().StringVar(&file, "out", "", "write the secret to this `FILE` instead of standard output")
	return cmd
}

func (o *operator) credentialList() *cobra.Command {
	return o.command("list SERVICE", "List the credentials of a service", oneArgument("service id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			all, err := pages.Credentials(ctx, c, models.ServiceID(args[0]))
			if err != nil {
				return err
			}
			return o.show(adminapi.ServiceCredentialPage{Credentials: all}, func() error {
				var rows [][]string
				for _, v := range all {
					rows = append(rows, []string{v.CredentialID, string(v.Kind), v.Name})
				}
				return report.Table(o.out, []string{"ID", "KIND", "NAME"}, rows)
			})
		})
}

func (o *operator) credentialDelete() *cobra.Command {
	var service string
	cmd := o.command("delete CREDENTIAL", "Take a credential from a service; its tokens end too", oneArgument("credential id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.DeleteServiceCredentialWithResponse(ctx, models.ServiceID(service), args[0])
			if err != nil {
				return err
			}
			return refusal.Check(r, r.HTTPResponse.Header)
		})
	cmd.Flags().StringVar(&service, "service", "", "`ID` of the service")
	needs(cmd, "service")
	return cmd
}

func (o *operator) keysList() *cobra.Command {
	return o.command("list", "List the keys that sign tokens", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.ListSigningKeysWithResponse(ctx)
			if err != nil {
				return err
			}
			all, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showKeys(all)
		})
}

func (o *operator) queueConfiguration() *cobra.Command {
	return o.command("configuration", "Print what nats-server has to know for services to read events in a NATS cluster", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.GetQueueConfigurationWithResponse(ctx)
			if err != nil {
				return err
			}
			q, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			if o.json {
				return report.JSON(o.out, q)
			}
			_, err = fmt.Fprint(o.out, q.Configuration)
			return err
		})
}

func (o *operator) keysRotate() *cobra.Command {
	var force bool
	cmd := o.command("rotate", "Publish the next key; it signs a day later by itself", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.RotateSigningKeysWithResponse(ctx, adminapi.KeyRotation{Force: &force})
			if err != nil {
				return err
			}
			all, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showKeys(all)
		})
	cmd.Flags().BoolVar(&force, "force", false, "let it sign at once; others that keep the key set may refuse its tokens for an hour")
	return cmd
}

func (o *operator) showKeys(all *adminapi.SigningKeyList) error {
	return o.show(all, func() error {
		var rows [][]string
		for _, k := range all.Keys {
			rows = append(rows, []string{k.Kid, k.Alg, string(k.State), k.Since.UTC().Format(time.DateTime), k.Until.UTC().Format(time.DateTime)})
		}
		return report.Table(o.out, []string{"KID", "ALG", "STATE", "SINCE", "UNTIL"}, rows)
	})
}

func (o *operator) invite() *cobra.Command {
	var account, file string
	cmd := o.command("invite", "Make an invitation to sign up", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.CreateInvitationWithResponse(ctx, &adminapi.CreateInvitationParams{IdempotencyKey: key()}, adminapi.InvitationRequest{AccountID: given(models.AccountID(account))})
			if err != nil {
				return err
			}
			i, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.secret(file, i.Invitation, i)
		})
	cmd.Long = "Make an invitation, good once and for 7 days: for a new account or, with --account, for a further user of that account."
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the account that the user belongs to")
	cmd.Flags().StringVar(&file, "out", "", "write the invitation to this `FILE` instead of standard output")
	return cmd
}
