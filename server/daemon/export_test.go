package daemon

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/server/config"
)

// StartOn is Start on a host whose clock is another, and that trusts others.
func StartOn(ctx context.Context, now func() time.Time, roots *x509.CertPool, cfg config.Config, version string, log *slog.Logger) (*Daemon, error) {
	return startOn(ctx, host{now, roots}, cfg, version, log)
}
