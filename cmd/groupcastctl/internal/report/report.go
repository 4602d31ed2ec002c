// Package report writes what groupcastctl has to say: tables for people, or the contract's own documents as JSON.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// JSON writes the document on one line.
func JSON(w io.Writer, document any) error {
	b, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// Table writes rows under their headings, columns aligned.
func Table(w io.Writer, headings []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// Fields writes one thing: a name and its value per line.
func Fields(w io.Writer, namesAndValues ...string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(namesAndValues); i += 2 {
		if namesAndValues[i+1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", namesAndValues[i], namesAndValues[i+1])
		}
	}
	return t.Flush()
}
