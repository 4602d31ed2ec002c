// Command groupcastd is the registration service: it decides who is in a group, hands out group IPs, and tells gateways.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/server/config"
	"github.com/groupcast/groupcast/server/daemon"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/telemetry"
)

// version is set by the linker.
var version = "devel"

// The exit codes: what a supervisor may try again, and what it shouldn't.
const (
	exitFailed = 1 // something went wrong that may be right later
	exitUsage  = 2 // the command line or the settings are wrong
)

// usageError is one that the same command line will meet again.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx))
}

func run(ctx context.Context) int {
	err := command(ctx).Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "groupcastd: %v\n", err)
	if _, usage := errors.AsType[usageError](err); usage {
		return exitUsage
	}
	return exitFailed
}

func command(ctx context.Context) *cobra.Command {
	root := &cobra.Command{
		Use:           "groupcastd",
		Short:         "The registration service of groupcast",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(serveCommand(ctx), migrateCommand(ctx), &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	})
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

func serveCommand(ctx context.Context) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service until SIGTERM or SIGINT",
		Long:  "Run the service until SIGTERM or SIGINT. docs/groupcastd.yaml describes every key; each is also a variable GROUPCAST_… and a key of the YAML file.",
		Args:  noArgs,
	}
	source := config.Flags(cmd.Flags())
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := source.Load(os.Environ())
		if err == nil {
			err = cfg.Check()
		}
		if err != nil {
			return usageError{err}
		}
		return daemon.Run(ctx, cfg, version, telemetry.NewLogger(os.Stderr, cfg.LogLevel, cfg.LogFormat))
	}
	return cmd
}

func migrateCommand(ctx context.Context) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date, or show where it stands",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		storeCommand(ctx, "up", "Bring the schema to the version of this program", func(_ *cobra.Command, st *store.Store) error {
			return st.Migrate(ctx)
		}),
		storeCommand(ctx, "status", "List the steps of the schema's history", func(cmd *cobra.Command, st *store.Store) error {
			steps, err := st.MigrationStatus(ctx)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "VERSION\tNAME\tAPPLIED")
			for _, s := range steps {
				applied := "no"
				if s.Applied {
					applied = s.AppliedAt.UTC().Format("2006-01-02 15:04:05 UTC")
				}
				fmt.Fprintf(w, "%d\t%s\t%s\n", s.Version, s.Name, applied)
			}
			return w.Flush()
		}),
	)
	return cmd
}

// storeCommand is a command on the database that the settings name.
func storeCommand(ctx context.Context, use, short string, run func(*cobra.Command, *store.Store) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs}
	source := config.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := source.Load(os.Environ())
		if err == nil {
			err = cfg.CheckStorage()
		}
		if err != nil {
			return usageError{err}
		}
		st, err := daemon.Open(ctx, cfg, telemetry.NewLogger(os.Stderr, cfg.LogLevel, cfg.LogFormat))
		if err != nil {
			return err
		}
		return errors.Join(run(cmd, st), st.Close())
	}
	return cmd
}
