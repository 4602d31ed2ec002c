package figures

import (
	"os"
	"testing"

	"github.com/groupcast/groupcast/e2e/harness"
)

// TestMain also is the bare servers: they are this program again, so that they are built like the tests and run apart from them.
func TestMain(m *testing.M) {
	if kind := os.Getenv(bareVariable); kind != "" {
		os.Exit(bare(kind))
	}
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}
