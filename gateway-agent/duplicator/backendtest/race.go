//go:build race

package backendtest

// raceDetector tells whether the process carries the shadow memory of the race detector, which grows with whatever was touched once.
const raceDetector = true
