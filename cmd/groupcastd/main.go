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

	"github.com/groupcast/groupcast/server/backup"
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
	root.AddCommand(serveCommand(ctx), migrateCommand(ctx), backupCommand(ctx), restoreCommand(ctx), &cobra.Command{
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

func backupCommand(ctx context.Context) *cobra.Command {
	return sqliteCommand("backup FILE", "Copy SQLite's database to a new file while the service runs", `Copy SQLite's database to a new file, as of one instant, while the service may be running. The keys in it are sealed: keep the file of
key-encryption-key-file too, at another place.`,
		func(cfg config.Config, file string) error { return backup.Make(ctx, cfg.DataDir, file) })
}

func restoreCommand(ctx context.Context) *cobra.Command {
	var force bool
	cmd := sqliteCommand("restore FILE", "Put a backup in the place of SQLite's database", `Put a backup in the place of SQLite's database while no service runs. The backup is checked, also whether
key-encryption-key-file opens the keys in it, and brought to this version's schema. The
epoch changes, and every group IP without a group is in quarantine for the cooldown. If the backup is older than the cooldown all
groups end, and members come back with their next renewals.`,
		func(cfg config.Config, file string) error {
			return backup.Restore(ctx, backup.Options{
				DataDir: cfg.DataDir, File: file, Force: force, KEKFile: cfg.KEKFile(), Log: telemetry.NewLogger(os.Stderr, cfg.LogLevel, cfg.LogFormat),
			})
		})
	cmd.Flags().BoolVar(&force, "force", false, "replace the database that is there; what it holds is lost")
	return cmd
}

// sqliteCommand is a command on SQLite's database and one other file.
func sqliteCommand(use, short, long string, run func(cfg config.Config, file string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(1)(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}}
	source := config.Flags(cmd.Flags())
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		cfg, err := source.Load(os.Environ())
		if err == nil {
			err = cfg.CheckStorage()
		}
		if err == nil && cfg.DatabaseURL != "" {
			err = errors.New("database-url: backup and restore are for SQLite; use pg_dump and pg_restore, and `groupcastctl admin epoch rotate` after a restore")
		}
		if err != nil {
			return usageError{err}
		}
		return run(cfg, args[0])
	}
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
