-- +goose Up
-- Where copies for a destination may go (learned, strict, exempt; empty for a source), and how many checks a gateway may send there before anything came
-- from there. Its credential isn't kept: it follows from the id (docs/adr/0049).
ALTER TABLE registrations ADD COLUMN consent_policy text NOT NULL DEFAULT '';
ALTER TABLE registrations ADD COLUMN probes integer NOT NULL DEFAULT 0;
UPDATE registrations SET consent_policy = CASE WHEN owner_service IS NULL THEN 'learned' ELSE 'strict' END WHERE role = 'destination';

-- Where the operator lets a service receive, as JSON; [] is anywhere.
ALTER TABLE services ADD COLUMN allowed_cidrs text NOT NULL DEFAULT '[]';

ALTER TABLE gateways ADD COLUMN behind_nat integer NOT NULL DEFAULT 0;
-- The number of the newest report that was applied: an older one changes nothing.
ALTER TABLE gateways ADD COLUMN report_sequence integer NOT NULL DEFAULT 0;

-- The ports that a gateway has reserved to send the copies of a source from; addresses are empty and ports 0 where there is none.
CREATE TABLE senders (
    registration_id text PRIMARY KEY REFERENCES registrations (id) ON DELETE CASCADE,
    port            integer NOT NULL, -- at the uplink
    mapped_ipv4     text NOT NULL,
    mapped_port     integer NOT NULL,
    ipv6            text NOT NULL,
    port_ipv6       integer NOT NULL
) STRICT;

-- How a destination's consent stands with each sender, as the gateway reported it, and where its copies go.
CREATE TABLE consents (
    registration_id text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    sender_id       text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    state           text NOT NULL CHECK (state IN ('live', 'lost', 'pending', 'unreachable')),
    address         text NOT NULL,
    port            integer NOT NULL,
    PRIMARY KEY (registration_id, sender_id)
) STRICT;
CREATE INDEX consents_sender ON consents (sender_id);

-- Who may send unasked checks to an address now: few at a time, whatever their account.
CREATE TABLE probe_slots (
    address         text NOT NULL,
    slot            integer NOT NULL,
    registration_id text NOT NULL,
    until           integer NOT NULL,
    PRIMARY KEY (address, slot)
) STRICT;
CREATE INDEX probe_slots_registration ON probe_slots (registration_id);

-- +goose Down
DROP TABLE probe_slots;
DROP TABLE consents;
DROP TABLE senders;
ALTER TABLE gateways DROP COLUMN report_sequence;
ALTER TABLE gateways DROP COLUMN behind_nat;
ALTER TABLE services DROP COLUMN allowed_cidrs;
ALTER TABLE registrations DROP COLUMN probes;
ALTER TABLE registrations DROP COLUMN consent_policy;
