// Package problems holds the pages that the type of a problem document points to: one per code, named CODE.md. The service
// serves them under /problems/.
package problems

import (
	"embed"
	"io/fs"
	"strings"
)

//go:embed *.md
var pages embed.FS

// Page is the page of a code in Markdown; false if there is none.
func Page(code string) ([]byte, bool) {
	b, err := fs.ReadFile(pages, code+".md")
	return b, err == nil
}

// Codes lists the codes that have a page.
func Codes() []string {
	entries, err := fs.ReadDir(pages, ".")
	if err != nil {
		return nil // can't happen: the root of an embedded tree exists
	}
	codes := make([]string, 0, len(entries))
	for _, e := range entries {
		codes = append(codes, strings.TrimSuffix(e.Name(), ".md"))
	}
	return codes
}
