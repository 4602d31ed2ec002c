-- +goose Up
-- Nodes of the operator that copy in the network (docs/adr/0063). They belong to no account.
CREATE TABLE relays (
    id              bigint  PRIMARY KEY,
    name            text    NOT NULL,
    all_premises    boolean NOT NULL DEFAULT false, -- else it may serve those in relay_premises
    recheck         boolean NOT NULL DEFAULT false, -- whom it may serve was changed, and whom it serves not yet
    removed         boolean NOT NULL DEFAULT false, -- the row stays until it can't copy any more
    thumbprint      text    UNIQUE,                 -- of its key (RFC 7638), once it has enrolled
    jwk             text    NOT NULL DEFAULT '',
    not_before      bigint  NOT NULL DEFAULT 0,
    tunnel_key      text    NOT NULL DEFAULT '',
    endpoint_ipv4   text    NOT NULL DEFAULT '',
    endpoint_port   bigint  NOT NULL DEFAULT 0,
    uplink          text    NOT NULL DEFAULT '',
    tunnel_address  text    NOT NULL UNIQUE,
    revision        bigint  NOT NULL DEFAULT 1,
    report_sequence bigint  NOT NULL DEFAULT 0,
    created_at      bigint  NOT NULL
);
CREATE TABLE relay_polls (
    relay_id       bigint PRIMARY KEY REFERENCES relays (id) ON DELETE CASCADE,
    epoch          text   NOT NULL DEFAULT '',
    acked_revision bigint NOT NULL DEFAULT 0,
    polled_at      bigint NOT NULL DEFAULT 0
);
-- Deleted when they are used.
CREATE TABLE relay_tickets (
    hash       bytea  PRIMARY KEY,
    relay_id   bigint NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    expires_at bigint NOT NULL
);
CREATE INDEX relay_tickets_relay ON relay_tickets (relay_id);
CREATE TABLE relay_premises (
    relay_id    bigint NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    premises_id text   NOT NULL REFERENCES premises (id) ON DELETE CASCADE,
    PRIMARY KEY (relay_id, premises_id)
);
CREATE INDEX relay_premises_premises ON relay_premises (premises_id);

ALTER TABLE premises ADD COLUMN fanout text NOT NULL DEFAULT 'home' CHECK (fanout IN ('home', 'network'));
ALTER TABLE premises ADD COLUMN on_relay_loss text NOT NULL DEFAULT 'home' CHECK (on_relay_loss IN ('home', 'stop'));

-- Which relay serves a premises; a row for each whose fanout is the network.
CREATE TABLE relay_assignments (
    premises_id text    PRIMARY KEY REFERENCES premises (id) ON DELETE CASCADE,
    relay_id    bigint  REFERENCES relays (id),
    forwarding  boolean NOT NULL DEFAULT false, -- the relay copies
    halted      boolean NOT NULL DEFAULT false, -- nobody copies until a relay is ready
    revision    bigint  NOT NULL DEFAULT 0,     -- the relay's first that holds the premises
    acked_at    bigint  NOT NULL DEFAULT 0,     -- when that was seen to be acknowledged
    CHECK (NOT forwarding OR relay_id IS NOT NULL),
    CHECK (NOT (forwarding AND halted))
);
CREATE INDEX relay_assignments_relay ON relay_assignments (relay_id);
CREATE INDEX relay_assignments_pending ON relay_assignments (premises_id) WHERE NOT forwarding;
-- The revision from which on a relay doesn't hold a premises any more; until it has acknowledged that, group IPs of the premises aren't reused.
CREATE TABLE relay_departures (
    premises_id text   NOT NULL REFERENCES premises (id) ON DELETE CASCADE,
    relay_id    bigint NOT NULL REFERENCES relays (id) ON DELETE CASCADE,
    revision    bigint NOT NULL,
    PRIMARY KEY (premises_id, relay_id)
);
CREATE INDEX relay_departures_relay ON relay_departures (relay_id);

-- A relay's group information changes with that of each gateway it serves, whoever changes it.
-- +goose StatementBegin
CREATE FUNCTION raise_relay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id = (SELECT a.relay_id FROM relay_assignments a WHERE a.premises_id = NEW.premises_id);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways FOR EACH ROW WHEN (NEW.revision <> OLD.revision) EXECUTE FUNCTION raise_relay();

-- What prefix the addresses within the tunnels have (RFC 4193), drawn with the first of them.
ALTER TABLE installation ADD COLUMN tunnel_prefix text NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN tunnel_key text NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN tunnel_address text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX gateways_tunnel_address ON gateways (tunnel_address) WHERE tunnel_address <> '';

-- The relay that served the premises when the address was released, and its revision that no longer holds the group; 0 if none did.
ALTER TABLE addresses ADD COLUMN released_relay bigint NOT NULL DEFAULT 0;
ALTER TABLE addresses ADD COLUMN released_relay_revision bigint NOT NULL DEFAULT 0;

-- A relay reports senders and consents of its own beside the gateway's, which have relay 0.
ALTER TABLE senders ADD COLUMN relay_id bigint NOT NULL DEFAULT 0;
ALTER TABLE senders ADD COLUMN address text NOT NULL DEFAULT ''; -- the relay's uplink; a gateway's stands with the gateway
ALTER TABLE senders DROP CONSTRAINT senders_pkey;
ALTER TABLE senders ADD PRIMARY KEY (registration_id, relay_id);
ALTER TABLE consents ADD COLUMN relay_id bigint NOT NULL DEFAULT 0;
ALTER TABLE consents ADD COLUMN counts boolean NOT NULL DEFAULT true; -- it is with the node that copies
ALTER TABLE consents DROP CONSTRAINT consents_pkey;
ALTER TABLE consents ADD PRIMARY KEY (registration_id, sender_id, relay_id);

-- +goose Down
DELETE FROM consents WHERE relay_id <> 0;
ALTER TABLE consents DROP CONSTRAINT consents_pkey;
ALTER TABLE consents DROP COLUMN counts;
ALTER TABLE consents DROP COLUMN relay_id;
ALTER TABLE consents ADD PRIMARY KEY (registration_id, sender_id);
DELETE FROM senders WHERE relay_id <> 0;
ALTER TABLE senders DROP CONSTRAINT senders_pkey;
ALTER TABLE senders DROP COLUMN address;
ALTER TABLE senders DROP COLUMN relay_id;
ALTER TABLE senders ADD PRIMARY KEY (registration_id);
ALTER TABLE addresses DROP COLUMN released_relay_revision;
ALTER TABLE addresses DROP COLUMN released_relay;
DROP INDEX gateways_tunnel_address;
ALTER TABLE gateways DROP COLUMN tunnel_address;
ALTER TABLE gateways DROP COLUMN tunnel_key;
ALTER TABLE installation DROP COLUMN tunnel_prefix;
DROP TRIGGER gateways_raise_relay ON gateways;
DROP FUNCTION raise_relay();
DROP TABLE relay_departures;
DROP TABLE relay_assignments;
ALTER TABLE premises DROP COLUMN on_relay_loss;
ALTER TABLE premises DROP COLUMN fanout;
DROP TABLE relay_premises;
DROP TABLE relay_tickets;
DROP TABLE relay_polls;
DROP TABLE relays;
