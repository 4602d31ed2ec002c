// Package state keeps the last group information on disk, so that an agent that starts again copies before the server answers.
//
// It owns one directory and refuses a second agent there. What it keeps is an opaque document: it knows whose it is, which
// version, and when the server last stood by it, but never what it says. Whether it is still fresh enough is the caller's decision;
// state only tells its age, and tells it too high rather than too low.
package state
