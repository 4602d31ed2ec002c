package figures

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/groupcast/groupcast/models"
)

// bareVariable names the bare server that this program is to be.
const bareVariable = "GROUPCAST_BARE_SERVER"

func bare(kind string) int {
	text, err := io.ReadAll(os.Stdin)
	var h http.Handler
	if err == nil {
		switch kind {
		case "registrations":
			h, err = bareRegistrations(text)
		case "polls":
			h, err = barePolls(text)
		case "service":
			if err = runService(text); err == nil {
				return 0
			}
		default:
			err = fmt.Errorf("there is no bare server %q", kind)
		}
	}
	if err == nil {
		err = http.ListenAndServe(os.Getenv(bareVariable+"_ADDR"), h) //nolint:gosec // it serves this program only
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// bareSettings is what a bare server of registrations is told.
type bareSettings struct {
	DatabaseURL string
	Units       []unit
}

// bareRegistrations is as little as can answer a registration: net/http, encoding/json, and a pgx pool as pgx makes it, which sends one
// statement after the other. It decides nothing, checks nothing, and tells nobody.
func bareRegistrations(text []byte) (http.Handler, error) {
	var s bareSettings
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(s.DatabaseURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinConns = poolSize, poolSize
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ ID, GroupName, Instance string }
		data, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(data, &body)
		}
		var phone int64
		if err == nil {
			phone, err = strconv.ParseInt(body.ID, 10, 64)
		}
		if err == nil {
			id := string(models.NewRegistrationID())
			names := strings.NewReplacer(variables(premisesOf(phone), numberOf(phone), groupNumber(body.GroupName), body.Instance, id)...)
			for _, u := range s.Units {
				if err = u.send(r.Context(), pool, names); err != nil {
					break
				}
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"groupIP":"192.168.1.230","state":5,"TTLs":86400,"renewAfter":28800,"generation":1,"registrationId":"r_0"}`)
	}), nil
}

// send runs the statements of a unit, each when the one before is answered.
func (u unit) send(ctx context.Context, pool *pgxpool.Pool, names *strings.Replacer) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if !u.Transaction {
		_, err := conn.Exec(ctx, u.Statements[0].Text, u.Statements[0].marked(names)...)
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	for _, s := range u.Statements {
		if _, err := tx.Exec(ctx, s.Text, s.marked(names)...); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}
