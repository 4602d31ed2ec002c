-- +goose Up
-- Nodes of the operator that copy in the network (docs/adr/0063). They belong to no account.
CREATE TABLE relays (
    id              integer  PRIMARY KEY,
    name            text    NOT NULL,
    all_premises    integer NOT NULL DEFAULT 0, -- else it may serve those in relay_premises
    recheck         integer NOT NULL DEFAULT 0, -- whom it may serve was changed, and whom it serves not yet
    removed         integer NOT NULL DEFAULT 0, -- the row stays until it can't copy any more
    thumbprint      text    UNIQUE,                 -- of its key (RFC 7638), once it has enrolled
    jwk             text    NOT NULL DEFAULT '',
    not_before      integer  NOT NULL DEFAULT 0,
    tunnel_key      text    NOT NULL DEFAULT '',
    endpoint_ipv4   text    NOT NULL DEFAULT '',
    endpoint_port   integer  NOT NULL DEFAULT 0,
    uplink          text    NOT NULL DEFAULT '',
    tunnel_address  text    NOT NULL UNIQUE,
    revision        integer  NOT NULL DEFAULT 1,
    report_sequence integer  NOT NULL DEFAULT 0,
    created_at      integer  NOT NULL
) STRICT;
CREATE TABLE relay_polls (
    relay_id       integer PRIMARY KEY REFERENCES relays (id) ON DELETE CASCADE,
    epoch          text   NOT NULL DEFAULT '',
    acked_revision integer NOT NULL DEFAULT 0,
    polled_at      integer NOT NULL DEFAULT 0
) STRICT;
-- Deleted when they are used.
CREATE TABLE relay_tickets (
    hash       blob  PRIMARY KEY,
    relay_id   integer NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    expires_at integer NOT NULL
) STRICT;
CREATE INDEX relay_tickets_relay ON relay_tickets (relay_id);
CREATE TABLE relay_premises (
    relay_id    integer NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    premises_id text   NOT NULL REFERENCES premises (id) ON DELETE CASCADE,
    PRIMARY KEY (relay_id, premises_id)
) STRICT;
CREATE INDEX relay_premises_premises ON relay_premises (premises_id);

ALTER TABLE premises ADD COLUMN fanout text NOT NULL DEFAULT 'home' CHECK (fanout IN ('home', 'network'));
ALTER TABLE premises ADD COLUMN on_relay_loss text NOT NULL DEFAULT 'home' CHECK (on_relay_loss IN ('home', 'stop'));

-- Which relay serves a premises; a row for each whose fanout is the network.
CREATE TABLE relay_assignments (
    premises_id text    PRIMARY KEY REFERENCES premises (id) ON DELETE CASCADE,
    relay_id    integer  REFERENCES relays (id),
    forwarding  integer NOT NULL DEFAULT 0, -- the relay copies
    halted      integer NOT NULL DEFAULT 0, -- nobody copies until a relay is ready
    revision    integer  NOT NULL DEFAULT 0,     -- the relay's first that holds the premises
    acked_at    integer  NOT NULL DEFAULT 0,     -- when that was seen to be acknowledged
    CHECK (NOT forwarding OR relay_id IS NOT NULL),
    CHECK (NOT (forwarding AND halted))
) STRICT;
CREATE INDEX relay_assignments_relay ON relay_assignments (relay_id);
CREATE INDEX relay_assignments_pending ON relay_assignments (premises_id) WHERE NOT forwarding;
-- The revision from which on a relay doesn't hold a premises any more; until it has acknowledged that, group IPs of the premises aren't reused.
CREATE TABLE relay_departures (
    premises_id text   NOT NULL REFERENCES premises (id) ON DELETE CASCADE,
    relay_id    integer NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    revision    integer NOT NULL,
    PRIMARY KEY (premises_id, relay_id)
) STRICT;
CREATE INDEX relay_departures_relay ON relay_departures (relay_id);

-- A relay's group information changes with that of each gateway it serves, whoever changes it.
-- +goose StatementBegin
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways WHEN new.revision <> old.revision
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id = (SELECT a.relay_id FROM relay_assignments a WHERE a.premises_id = new.premises_id);
END;
-- +goose StatementEnd

-- What prefix the addresses within the tunnels have (RFC 4193), drawn with the first of them.
ALTER TABLE installation ADD COLUMN tunnel_prefix text NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN tunnel_key text NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN tunnel_address text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX gateways_tunnel_address ON gateways (tunnel_address) WHERE tunnel_address <> '';

-- The relay that served the premises when the address was released, and its revision that no longer holds the group; 0 if none did.
ALTER TABLE addresses ADD COLUMN released_relay integer NOT NULL DEFAULT 0;
ALTER TABLE addresses ADD COLUMN released_relay_revision integer NOT NULL DEFAULT 0;

-- A relay reports senders and consents of its own beside the gateway's, which have relay 0.
CREATE TABLE new_senders (
    registration_id text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    relay_id        integer NOT NULL DEFAULT 0,
    address         text NOT NULL DEFAULT '', -- the relay's uplink; a gateway's stands with the gateway
    port            integer NOT NULL, -- at the uplink
    mapped_ipv4     text NOT NULL,
    mapped_port     integer NOT NULL,
    ipv6            text NOT NULL,
    port_ipv6       integer NOT NULL,
    PRIMARY KEY (registration_id, relay_id)
) STRICT;
INSERT INTO new_senders (registration_id, port, mapped_ipv4, mapped_port, ipv6, port_ipv6)
    SELECT registration_id, port, mapped_ipv4, mapped_port, ipv6, port_ipv6 FROM senders;
DROP TABLE senders;
ALTER TABLE new_senders RENAME TO senders;
CREATE TABLE new_consents (
    registration_id text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    sender_id       text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    relay_id        integer NOT NULL DEFAULT 0,
    counts          integer NOT NULL DEFAULT 1, -- it is with the node that copies
    state           text NOT NULL CHECK (state IN ('live', 'lost', 'pending', 'unreachable')),
    address         text NOT NULL,
    port            integer NOT NULL,
    PRIMARY KEY (registration_id, sender_id, relay_id)
) STRICT;
INSERT INTO new_consents (registration_id, sender_id, state, address, port) SELECT registration_id, sender_id, state, address, port FROM consents;
DROP TABLE consents;
ALTER TABLE new_consents RENAME TO consents;
CREATE INDEX consents_sender ON consents (sender_id);

-- +goose Down
ALTER TABLE consents RENAME TO relay_consents;
DROP INDEX consents_sender;
CREATE TABLE consents (
    registration_id text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    sender_id       text NOT NULL REFERENCES registrations (id) ON DELETE CASCADE,
    state           text NOT NULL CHECK (state IN ('live', 'lost', 'pending', 'unreachable')),
    address         text NOT NULL,
    port            integer NOT NULL,
    PRIMARY KEY (registration_id, sender_id)
) STRICT;
INSERT INTO consents SELECT registration_id, sender_id, state, address, port FROM relay_consents WHERE relay_id = 0;
DROP TABLE relay_consents;
CREATE INDEX consents_sender ON consents (sender_id);
ALTER TABLE senders RENAME TO relay_senders;
CREATE TABLE senders (
    registration_id text PRIMARY KEY REFERENCES registrations (id) ON DELETE CASCADE,
    port            integer NOT NULL, -- at the uplink
    mapped_ipv4     text NOT NULL,
    mapped_port     integer NOT NULL,
    ipv6            text NOT NULL,
    port_ipv6       integer NOT NULL
) STRICT;
INSERT INTO senders SELECT registration_id, port, mapped_ipv4, mapped_port, ipv6, port_ipv6 FROM relay_senders WHERE relay_id = 0;
DROP TABLE relay_senders;
DROP TRIGGER gateways_raise_relay;
ALTER TABLE addresses DROP COLUMN released_relay_revision;
ALTER TABLE addresses DROP COLUMN released_relay;
DROP INDEX gateways_tunnel_address;
ALTER TABLE gateways DROP COLUMN tunnel_address;
ALTER TABLE gateways DROP COLUMN tunnel_key;
ALTER TABLE installation DROP COLUMN tunnel_prefix;
DROP TABLE relay_departures;
DROP TABLE relay_assignments;
ALTER TABLE premises DROP COLUMN on_relay_loss;
ALTER TABLE premises DROP COLUMN fanout;
DROP TABLE relay_premises;
DROP TABLE relay_tickets;
DROP TABLE relay_polls;
DROP TABLE relays;
