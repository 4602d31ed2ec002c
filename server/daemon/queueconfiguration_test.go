//go:build !race

package daemon_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
)

// What is under test here is a built program, and those are built without the race detector.

// TestTheConfigurationOfACluster: what groupcastctl prints is one that nats-server takes, with each service and without a secret.
func TestTheConfigurationOfACluster(t *testing.T) {
	s := start(t, settings(t, dataDir(t)))
	s.home(t, "Smith")
	s.home(t, "Jones")
	text, err := exec.Command(harness.Bin(t, "groupcastctl"), "admin", "queue", "configuration", "--data-dir", s.cfg.DataDir).Output()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "nats.conf")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	o, err := server.ProcessConfigFile(file)
	require.NoError(t, err)
	var accounts []string
	for _, a := range o.Accounts {
		accounts = append(accounts, a.Name)
	}
	assert.ElementsMatch(t, []string{"GROUPCAST", "GROUPCAST-SYSTEM", "svc-smith", "svc-jones"}, accounts)
	for word := range strings.FieldsFuncSeq(string(text), func(r rune) bool { return strings.ContainsRune(" ,{}[]:\"\n", r) }) {
		assert.False(t, len(word) > 50 && strings.HasPrefix(word, "S"), "seeds begin with S: %s", word)
	}
}
