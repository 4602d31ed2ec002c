package mqtt

import (
	"strings"

	"github.com/groupcast/groupcast/models"
)

// The topics. Which account's they are follows from the connection, so no topic names one.
const (
	// EventsTopic has what is announced to the account's devices: new devices, new groups.
	EventsTopic = "gc/v1/events"
	statePrefix = "gc/v1/groups/"
	stateSuffix = "/state"
)

// maxGroupID bounds what is looked up.
const maxGroupID = 64

// StateTopic has the state of a group.
func StateTopic(g models.GroupID) string { return statePrefix + string(g) + stateSuffix }

// stream is what a topic of an account tells about; not ok if there is no such topic. Wildcards are no topics.
func stream(topic string, account models.AccountID) (of models.EventStream, ok bool) {
	of.AccountID = account
	if topic == EventsTopic {
		return of, true
	}
	rest, ok := strings.CutPrefix(topic, statePrefix)
	if !ok {
		return of, false
	}
	id, ok := strings.CutSuffix(rest, stateSuffix)
	if !ok || id == "" || len(id) > maxGroupID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return of, false
	}
	of.GroupID = models.GroupID(id)
	return of, true
}
