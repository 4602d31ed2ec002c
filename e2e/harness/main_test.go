package harness_test

import (
	"os"
	"testing"

	"github.com/groupcast/groupcast/e2e/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}
