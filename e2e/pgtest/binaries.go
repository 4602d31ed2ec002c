package pgtest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// ErrMissing says that there are no Postgres binaries, and what to do about it.
var ErrMissing = errors.New("needs Postgres: run `sudo apt-get install -y postgresql`, " +
	"or set PG_BIN to the folder of initdb and postgres, or TEST_DATABASE_URL to a running server")

// binDir finds the folder that holds initdb and postgres.
func binDir() (string, error) {
	if dir := os.Getenv("PG_BIN"); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("PG_BIN=%s holds no initdb and postgres: set it to the folder of both, or unset it", dir)
		}
		return dir, nil
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// initdb looks for postgres beside itself, so a link in PATH is no use.
		if target, err := filepath.EvalSymlinks(initdb); err == nil && hasServer(filepath.Dir(target)) {
			return filepath.Dir(target), nil
		}
	}
	packaged, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", fmt.Errorf("looking for Postgres: %w", err)
	}
	packaged = slices.DeleteFunc(packaged, func(dir string) bool { return !hasServer(dir) })
	if len(packaged) == 0 {
		return "", ErrMissing
	}
	return slices.MaxFunc(packaged, func(a, b string) int { return cmp.Compare(major(a), major(b)) }), nil
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

// major is 15 for /usr/lib/postgresql/15/bin.
func major(dir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return n
}

// serverUser is who runs Postgres: nil (whoever runs the test), or for root an ordinary user.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("Postgres does not run as root, and there is no user postgres or nobody: add one of them, or run the tests as an ordinary user")
}
