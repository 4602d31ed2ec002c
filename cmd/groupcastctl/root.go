package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/connect"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/report"
	"github.com/groupcast/groupcast/openapi/client"
)

const envPrefix = "GROUPCASTCTL_"

// program is what all commands share.
type program struct {
	out, err io.Writer
	leaveBy  context.Context // the second signal ends it

	public connect.Public
	json   bool
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "groupcastctl",
		Short:         "What an operator or integrator of groupcast does by hand",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd.Flags(), os.LookupEnv)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %q", err, cmd.CommandPath()+" --help")
	})
	flags := root.PersistentFlags()
	flags.StringVar(&p.public.Server, "server", "http://127.0.0.1:8080", "`URL` of the service")
	flags.StringVar(&p.public.CA, "ca", "", "`FILE` with the certificates that the server's must chain to (default: the system's)")
	flags.StringVar(&p.public.TokenFile, "token-file", "", "credential `FILE` that \"groupcastctl enrol\" or \"service-credential\" wrote, or one with an access token, read at each call")
	flags.BoolVar(&p.public.AllowPlainHTTP, "allow-plain-http", false, "send the token without TLS to a server that isn't on this host")
	flags.BoolVar(&p.json, "json", false, "write the contract's JSON documents instead of tables")
	for _, name := range []string{"server", "ca", "token-file", "allow-plain-http", "json"} {
		describeVariable(flags.Lookup(name))
	}
	root.AddCommand(
		p.admin(),
		p.audit(),
		p.register(), p.leave(), p.registrations(), p.groups(), p.watch(), p.events(),
		p.camera(), p.receive(), p.consentResponder(),
		p.enrol(), p.login(), p.serviceCredential(), p.webhooks(),
	)
	return root
}

// envAnnotation marks the flags that a variable of the environment sets too.
const envAnnotation = "environment"

func describeVariable(f *pflag.Flag) {
	name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	f.Annotations = map[string][]string{envAnnotation: {name}}
	f.Usage += " [" + name + "]"
}

func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var faults []string
	flags.VisitAll(func(f *pflag.Flag) {
		name, ok := f.Annotations[envAnnotation]
		if !ok || f.Changed {
			return
		}
		if value, ok := lookup(name[0]); ok {
			if err := flags.Set(f.Name, value); err != nil {
				faults = append(faults, fmt.Sprintf("%s: %v", name[0], err))
			}
		}
	})
	if faults != nil {
		return fmt.Errorf("%s", strings.Join(faults, "; "))
	}
	return nil
}

// oneArgument says what is missing after the flags.
func oneArgument(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("give exactly one %s; see %q", name, cmd.CommandPath()+" --help")
		}
		return nil
	}
}

// command makes a command that calls the service's public contract.
func (p *program) command(use, short string, args cobra.PositionalArgs, run func(context.Context, *client.ClientWithResponses, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		c, err := p.public.Open()
		if err != nil {
			return err
		}
		return run(cmd.Context(), c, args)
	}}
}

// show writes the document as JSON, or calls the other.
func (p *program) show(document any, table func() error) error {
	if p.json {
		return report.JSON(p.out, document)
	}
	return table()
}

// log takes what happens while a long command runs. It is for people, on standard error.
func (p *program) log() *slog.Logger { return slog.New(slog.NewTextHandler(p.err, nil)) }

func needs(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // a flag of that name doesn't exist: a fault of this program
		}
	}
}
