package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/connect"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/pages"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/refusal"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminclient"
)

// operator is what the admin commands share.
type operator struct {
	*program
	dataDir string
}

func (p *program) admin() *cobra.Command {
	o := &operator{program: p}
	return o.group("admin", "Bootstrap accounts and mint tokens, on the host of the service",
		group("account", "Accounts, the tenants", o.accountCreate(), o.accountList()),
		group("premises", "Homes and buildings", o.premisesCreate()),
		group("device", "Cameras, gateways, receivers, phones", o.deviceCreate(), o.deviceSet(), o.deviceDelete()),
		group("service", "Partners that receive streams", o.serviceCreate(), o.serviceShow(), o.serviceChange(),
			group("credential", "What a service gets its tokens with", o.credentialCreate(), o.credentialList(), o.credentialDelete())),
		group("link", "An account's consent for a service", o.linkCreate(), o.linkDelete()),
		o.relay(),
		group("identity", "Whom a user is at an external issuer", o.identityCreate(), o.identityDelete()),
		o.invite(), o.ticket(), o.approve(), o.token(),
		group("keys", "The keys that sign tokens", o.keysList(), o.keysRotate()),
		group("queue", "The queue of events", o.queueConfiguration()),
		group("epoch", "This life of the database", o.epochRotate()),
	)
}

// group makes the commands that reach the service on this host.
func (o *operator) group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := group(use, short, commands...)
	g.PersistentFlags().StringVar(&o.dataDir, "data-dir", "", "data directory `DIR` of the groupcastd on this host")
	describeVariable(g.PersistentFlags().Lookup("data-dir"))
	return g
}

func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short}
	g.AddCommand(commands...)
	return g
}

// command makes a command that calls the operator's contract.
func (o *operator) command(use, short string, args cobra.PositionalArgs, run func(context.Context, *adminclient.ClientWithResponses, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		c, err := connect.Admin(o.dataDir)
		if err != nil {
			return err
		}
		return run(cmd.Context(), c, args)
	}}
}

// key is drawn for each run of a command: what is sent again because its answer got lost is done once.
func key() *string { return new(rand.Text()) }

func (o *operator) accountCreate() *cobra.Command {
	return o.command("create NAME", "Create an account", oneArgument("name"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.CreateAccountWithResponse(ctx, &adminapi.CreateAccountParams{IdempotencyKey: key()}, adminapi.AccountRequest{Name: args[0]})
			if err != nil {
				return err
			}
			a, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(a, func() error { return report.Fields(o.out, "accountId", string(a.AccountID), "name", a.Name) })
		})
}

func (o *operator) accountList() *cobra.Command {
	return o.command("list", "List accounts with their premises, devices and links", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			all, err := pages.Accounts(ctx, c)
			if err != nil {
				return err
			}
			return o.show(adminapi.AccountPage{Accounts: all}, func() error {
				var rows [][]string
				for _, a := range all {
					rows = append(rows, []string{"account", string(a.AccountID), a.Name, ""})
					for _, p := range a.Premises {
						rows = append(rows, []string{"  premises", string(p.PremisesID), p.Name, ""})
					}
					for _, d := range a.Devices {
						rows = append(rows, []string{"  " + string(d.Type), d.DeviceID.String(), d.Name, string(d.PremisesID)})
					}
					for _, l := range a.Links {
						rows = append(rows, []string{"  link", l.ServiceAccountID.String(), string(l.ServiceID), ""})
					}
				}
				return report.Table(o.out, []string{"WHAT", "ID", "NAME", "PREMISES"}, rows)
			})
		})
}

func (o *operator) premisesCreate() *cobra.Command {
	var account string
	var allowPublicRange bool
	cmd := o.command("create NAME", "Create a premises of an account", oneArgument("name"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.CreatePremisesWithResponse(ctx, &adminapi.CreatePremisesParams{IdempotencyKey: key()}, adminapi.PremisesRequest{
				AccountID: models.AccountID(account), Name: args[0], AllowPublicRange: &allowPublicRange,
			})
			if err != nil {
				return err
			}
			p, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(p, func() error {
				return report.Fields(o.out, "premisesId", string(p.PremisesID), "accountId", string(p.AccountID), "name", p.Name,
					"allowPublicRange", text(&p.AllowPublicRange))
			})
		})
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the account")
	cmd.Flags().BoolVar(&allowPublicRange, "allow-public-range", false, "let gateways declare a group range outside private address space")
	require(cmd, "account")
	return cmd
}

func (o *operator) deviceCreate() *cobra.Command {
	var premises, id, kind, model, trigger string
	var pop onOff = true
	cmd := o.command("create NAME", "Create or import a device", oneArgument("name"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			request := adminapi.DeviceRequest{
				PremisesID: models.PremisesID(premises), Type: models.DeviceType(kind), Name: args[0],
				Model: given(model), Pop: (*bool)(&pop), Trigger: given(models.Trigger(trigger)),
			}
			if id != "" {
				parsed, err := models.ParseID(id)
				if err != nil {
					return fmt.Errorf("--id: %w", err)
				}
				request.DeviceID = &parsed
			}
			r, err := c.CreateDeviceWithResponse(ctx, &adminapi.CreateDeviceParams{IdempotencyKey: key()}, request)
			if err != nil {
				return err
			}
			d, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showDevice(d)
		})
	f := cmd.Flags()
	f.StringVar(&premises, "premises", "", "`ID` of the premises")
	f.StringVar(&id, "id", "", "import a device with this `ID` (default: a random one)")
	f.StringVar(&kind, "type", "camera", "camera, receiver, phone, tablet, laptop, gateway or other")
	f.StringVar(&model, "model", "", "the model, for people")
	f.StringVar(&trigger, "trigger", "", "what makes this camera's datagrams eligible for copying: option (default) or source")
	f.Var(&pop, "pop", "`on|off`: whether tokens must be bound to a key of the device")
	require(cmd, "premises")
	return cmd
}

func (o *operator) deviceSet() *cobra.Command {
	var name, trigger string
	cmd := o.command("set DEVICE", "Rename a device or change its trigger", oneArgument("device id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			id, err := models.ParseID(args[0])
			if err != nil {
				return err
			}
			r, err := c.ChangeDeviceWithResponse(ctx, id, adminapi.DeviceChange{Name: given(name), Trigger: given(models.Trigger(trigger))})
			if err != nil {
				return err
			}
			d, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showDevice(d)
		})
	cmd.Flags().StringVar(&name, "name", "", "what people call the device")
	cmd.Flags().StringVar(&trigger, "trigger", "", "option, or source for a camera that can't set IP options")
	cmd.MarkFlagsOneRequired("name", "trigger")
	return cmd
}

func (o *operator) showDevice(d *adminapi.Device) error {
	return o.show(d, func() error {
		pop := onOff(d.Pop)
		return report.Fields(o.out, "deviceId", d.DeviceID.String(), "type", string(d.Type), "name", d.Name, "model", text(d.Model),
			"premisesId", string(d.PremisesID), "accountId", string(d.AccountID), "pop", pop.String(), "trigger", string(d.Trigger))
	})
}

func (o *operator) deviceDelete() *cobra.Command {
	return o.command("delete DEVICE", "Remove a device: its tokens stop working and its registrations end", oneArgument("device id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			id, err := models.ParseID(args[0])
			if err != nil {
				return err
			}
			r, err := c.DeleteDeviceWithResponse(ctx, id)
			if err != nil {
				return err
			}
			return refusal.Check(r, r.HTTPResponse.Header)
		})
}

func (o *operator) serviceShow() *cobra.Command {
	return o.command("show SERVICE", "Show a service and where it may receive", oneArgument("service id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			r, err := c.GetServiceWithResponse(ctx, models.ServiceID(args[0]))
			if err != nil {
				return err
			}
			s, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showService(s)
		})
}

func (o *operator) serviceChange() *cobra.Command {
	var name string
	var allowed []string
	cmd := o.command("change SERVICE", "Name a service and say where it may receive", oneArgument("service id"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			list, err := allowedCIDRs(allowed)
			if err != nil {
				return err
			}
			if name == "" {
				name = args[0]
			}
			r, err := c.ChangeServiceWithResponse(ctx, models.ServiceID(args[0]), adminapi.ServiceChange{Name: name, AllowedCIDRs: list})
			if err != nil {
				return err
			}
			s, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.showService(s)
		})
	cmd.Long = `Name a service and say where it may receive. Both are replaced; without --allow it may receive anywhere, with the consent of each address.
What is registered elsewhere ends at once.`
	cmd.Flags().StringVar(&name, "name", "", "what people call the service (default: its id)")
	cmd.Flags().StringArrayVar(&allowed, "allow", nil, "`PREFIX[,probe][,exempt]` where it may receive; probe: gateways may ask first, exempt: copies are sent there unasked (repeat for more)")
	return cmd
}

// allowedCIDRs reads PREFIX[,probe][,exempt].
func allowedCIDRs(texts []string) (adminapi.AllowedCIDRs, error) {
	list := adminapi.AllowedCIDRs{}
	for _, text := range texts {
		words := strings.Split(text, ",")
		entry := adminapi.AllowedCIDR{Cidr: words[0]}
		for _, w := range words[1:] {
			switch w {
			case "probe":
				entry.Probe = new(true)
			case "exempt":
				entry.Consent = new(adminapi.Exempt)
			default:
				return nil, fmt.Errorf("--allow %s: %q is neither probe nor exempt", text, w)
			}
		}
		list = append(list, entry)
	}
	return list, nil
}

func (o *operator) showService(s *adminapi.Service) error {
	return o.show(s, func() error {
		var allowed []string
		if s.AllowedCIDRs != nil {
			for _, a := range *s.AllowedCIDRs {
				text := a.Cidr
				if a.Probe != nil && *a.Probe {
					text += ",probe"
				}
				if a.Consent != nil && *a.Consent == adminapi.Exempt {
					text += ",exempt"
				}
				allowed = append(allowed, text)
			}
		}
		return report.Fields(o.out, "serviceId", string(s.ServiceID), "name", s.Name, "allowed", strings.Join(allowed, " "))
	})
}

func (o *operator) serviceCreate() *cobra.Command {
	var name string
	cmd := o.command("create SERVICE", "Create a service", oneArgument("service id, for example svc-upload"),
		func(ctx context.Context, c *adminclient.ClientWithResponses, args []string) error {
			if name == "" {
				name = args[0]
			}
			r, err := c.CreateServiceWithResponse(ctx, &adminapi.CreateServiceParams{IdempotencyKey: key()}, adminapi.ServiceRequest{ServiceID: models.ServiceID(args[0]), Name: name})
			if err != nil {
				return err
			}
			s, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(s, func() error { return report.Fields(o.out, "serviceId", string(s.ServiceID), "name", s.Name) })
		})
	cmd.Flags().StringVar(&name, "name", "", "what people call the service (default: its id)")
	return cmd
}

func (o *operator) linkCreate() *cobra.Command {
	var service, account, id string
	var scopes, premises []string
	var life time.Duration
	cmd := o.command("create", "Record an account's consent for a service", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			request := adminapi.LinkRequest{ServiceID: models.ServiceID(service), AccountID: models.AccountID(account)}
			for _, s := range scopes {
				request.Scopes = appended(request.Scopes, adminapi.ServiceScope(s))
			}
			for _, p := range premises {
				request.Premises = appended(request.Premises, models.PremisesID(p))
			}
			if life != 0 {
				request.ExpiresAt = new(time.Now().Add(life).UTC())
			}
			if id != "" {
				parsed, err := models.ParseID(id)
				if err != nil {
					return fmt.Errorf("--id: %w", err)
				}
				request.ServiceAccountID = &parsed
			}
			r, err := c.CreateLinkWithResponse(ctx, &adminapi.CreateLinkParams{IdempotencyKey: key()}, request)
			if err != nil {
				return err
			}
			l, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(l, func() error {
				return report.Fields(o.out, "serviceAccountId", l.ServiceAccountID.String(), "serviceId", string(l.ServiceID), "accountId", string(l.AccountID))
			})
		})
	cmd.Flags().StringVar(&service, "service", "", "`ID` of the service")
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the account")
	cmd.Flags().StringVar(&id, "id", "", "import this service account `ID` (default: a random one)")
	cmd.Flags().StringSliceVar(&scopes, "scope", nil, "what it may do: gc:register, gc:events, gc:notify (default: all)")
	cmd.Flags().StringSliceVar(&premises, "premises", nil, "`ID` of a premises that it is for (default: all of the account)")
	cmd.Flags().DurationVar(&life, "expires-in", 0, "how long it is good, for example 720h (default: for ever)")
	require(cmd, "service", "account")
	return cmd
}

// appended adds to a list that is absent while it is empty.
func appended[T any](list *[]T, v T) *[]T {
	if list == nil {
		list = new([]T)
	}
	*list = append(*list, v)
	return list
}

func (o *operator) linkDelete() *cobra.Command {
	var service, account string
	cmd := o.command("delete", "End an account's consent for a service: its registrations end at once", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.DeleteLinkWithResponse(ctx, models.ServiceID(service), models.AccountID(account))
			if err != nil {
				return err
			}
			return refusal.Check(r, r.HTTPResponse.Header)
		})
	cmd.Flags().StringVar(&service, "service", "", "`ID` of the service")
	cmd.Flags().StringVar(&account, "account", "", "`ID` of the account")
	require(cmd, "service", "account")
	return cmd
}

func (o *operator) epochRotate() *cobra.Command {
	cmd := o.command("rotate", "Begin a new life of a database that was restored by pg_restore", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			r, err := c.RotateEpochWithResponse(ctx)
			if err != nil {
				return err
			}
			e, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			return o.show(e, func() error {
				return report.Fields(o.out, "epoch", e.Epoch, "endedGroups", strconv.Itoa(int(e.EndedGroups)))
			})
		})
	cmd.Long = `Begin a new life of a database that was restored by other means than "groupcastd restore". Call it at once after the start
of the first groupcastd on it. All groups end, and all group IPs are in quarantine for the cooldown, because nobody knows
who got them since the backup was made; members come back with their next renewals.`
	return cmd
}

func (o *operator) token() *cobra.Command {
	var device, service, file string
	var lifetime time.Duration
	cmd := o.command("token", "Mint an access token for a device or a service", cobra.NoArgs,
		func(ctx context.Context, c *adminclient.ClientWithResponses, _ []string) error {
			seconds := int32(lifetime / time.Second)
			request := adminapi.TokenRequest{ServiceID: given(models.ServiceID(service)), LifetimeSeconds: &seconds}
			if device != "" {
				id, err := models.ParseID(device)
				if err != nil {
					return fmt.Errorf("--device: %w", err)
				}
				request.DeviceID = &id
			}
			r, err := c.CreateTokenWithResponse(ctx, request)
			if err != nil {
				return err
			}
			t, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
			if err != nil {
				return err
			}
			if file == "" {
				return o.show(t, func() error { _, err := fmt.Fprintln(o.out, t.AccessToken); return err })
			}
			// Whoever reads the file meanwhile gets the old token or the new one.
			if err := renameio.WriteFile(file, []byte(t.AccessToken+"\n"), 0o600); err != nil {
				return fmt.Errorf("--out: %w", err)
			}
			return nil
		})
	cmd.Long = `Mint an access token, signed by the service's own issuer. It is shown once and can't be read again.

With --out it goes into a file that only its owner can read, replaced in one step: gateway-agent and groupcastctl use the new
one at their next call.`
	f := cmd.Flags()
	f.StringVar(&device, "device", "", "`ID` of the device or gateway")
	f.StringVar(&service, "service", "", "`ID` of the service")
	f.DurationVar(&lifetime, "ttl", 24*time.Hour, "how long the token is valid, at most 24h")
	f.StringVar(&file, "out", "", "write the token to this `FILE` instead of standard output")
	cmd.MarkFlagsOneRequired("device", "service")
	cmd.MarkFlagsMutuallyExclusive("device", "service")
	return cmd
}

// onOff is a switch that is spelled out.
type onOff bool

func (o *onOff) String() string {
	if *o {
		return "on"
	}
	return "off"
}

// Set implements pflag.Value.
func (o *onOff) Set(s string) error {
	switch s {
	case "on":
		*o = true
	case "off":
		*o = false
	default:
		return fmt.Errorf("%q is neither on nor off", s)
	}
	return nil
}

// Type implements pflag.Value.
func (*onOff) Type() string { return "on|off" }
