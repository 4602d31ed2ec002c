package models

// Quotas bound what an account can have, so that nobody fills the database or makes a camera's stream a flood. 0 is any number. What an
// operator adds on the admin socket counts and is never refused.
type Quotas struct {
	PremisesPerAccount      int
	DevicesPerAccount       int
	RegistrationsPerAccount int
	GroupsPerPremises       int
	DestinationsPerGroup    int
}

// The names of the quotas, as they stand in the problem document.
const (
	QuotaPremises      = "premises"
	QuotaDevices       = "devices"
	QuotaRegistrations = "registrations"
	QuotaGroups        = "groups"
	QuotaDestinations  = "destinations"
	QuotaWebhooks      = "webhooks" // of a service
)

// QuotaExceeded is the refusal of what would exceed a quota; todo is a sentence that says what to do.
func QuotaExceeded(quota string, limit, used int, todo string) *Error {
	return Errorf(CodeQuotaExceeded, "There are %d %s already, and %d are allowed. %s", used, quota, limit, todo).
		With("quota", quota).With("limit", limit).With("used", used)
}
