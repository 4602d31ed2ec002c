package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRequirementsNameWhatExists keeps docs/requirements.md from promising a proof or a place that isn't there, and from leaving a
// requirement out.
func TestRequirementsNameWhatExists(t *testing.T) {
	doc, err := os.ReadFile("../docs/requirements.md")
	require.NoError(t, err)
	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	tests := map[string]bool{}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	require.NoError(t, err)
	ids := map[string]int{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([ANGE][0-9]+(?: [ANGE][0-9]+)*) \|`).FindAllStringSubmatch(string(doc), -1) {
		for id := range strings.FieldsSeq(row[1]) {
			ids[id]++
		}
	}
	for letter, last := range map[string]int{"A": 20, "N": 9, "G": 16, "E": 28} {
		for n := 1; n <= last; n++ {
			assert.Equal(t, 1, ids[fmt.Sprint(letter, n)], "%s%d stands in docs/requirements.md once", letter, n)
		}
	}

	named := regexp.MustCompile("`(Test[A-Z]\\w+)`").FindAllSubmatch(doc, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		assert.True(t, tests[string(m[1])], "docs/requirements.md names %s, which no file declares", m[1])
	}
	for _, m := range regexp.MustCompile("`((?:server|gateway-agent|openapi|models)[a-z/.-]*)`").FindAllSubmatch(doc, -1) {
		_, err := os.Stat(filepath.Join("..", string(m[1])))
		assert.NoError(t, err, "docs/requirements.md names a place that isn't there")
	}
}
