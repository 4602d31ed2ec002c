package daemon

import "os"

// ballastSize is by how much the garbage of a process may outgrow what it holds: 128 MiB.
const ballastSize = 128 << 20

// Ballast makes the garbage collector begin not when the heap has doubled, which for a process that holds little is many times a second, but when it
// has doubled and grown by 128 MiB: it counts the ballast as held, of which nothing is ever touched, so it takes no memory itself. It works
// as long as the caller holds it. An operator who sets GOGC or GOMEMLIMIT decides alone (docs/adr/0055).
func Ballast() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, ballastSize)
}
