-- +goose Up
-- Times are milliseconds since 1970 by the database's clock (see installation.clock_offset_ms); addresses are canonical text.

-- One row: what is true of this installation as a whole.
CREATE TABLE installation (
    one             integer PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    epoch           text    NOT NULL, -- names this life of the database; rotated after a restore
    restored_at     integer NOT NULL DEFAULT 0, -- when this life began by restoring a backup; 0 if it didn't
    clock_offset_ms integer NOT NULL DEFAULT 0, -- added to the clock; only tests set it
    expiry_ran_at   integer NOT NULL DEFAULT 0, -- when leases were last looked at, on any replica
    amnesty_ms      integer NOT NULL DEFAULT 0, -- how much every lease is being extended by after an outage; 0 if none is
    amnesty_after   text    NOT NULL DEFAULT '' -- the last registration that was extended
) STRICT;
INSERT INTO installation (epoch) VALUES (lower(hex(randomblob(8))));

CREATE TABLE signing_keys (
    kid            text    PRIMARY KEY,
    alg            text    NOT NULL,
    private_sealed blob    NOT NULL, -- AES-256-GCM under the key-encryption key
    created_at     integer NOT NULL
) STRICT;
-- Seals device and account ids inside tokens.
CREATE TABLE sealing_keys (
    version    integer PRIMARY KEY,
    key_sealed blob    NOT NULL,
    created_at integer NOT NULL
) STRICT;

CREATE TABLE accounts (
    id         text    PRIMARY KEY,
    name       text    NOT NULL,
    created_at integer NOT NULL
) STRICT;

CREATE TABLE premises (
    id                 text    PRIMARY KEY,
    account_id         text    NOT NULL REFERENCES accounts (id),
    name               text    NOT NULL,
    allow_public_range integer NOT NULL DEFAULT 0,
    created_at         integer NOT NULL
) STRICT;
CREATE INDEX premises_account ON premises (account_id);

CREATE TABLE devices (
    id          integer PRIMARY KEY,
    account_id  text    NOT NULL REFERENCES accounts (id),
    premises_id text    NOT NULL REFERENCES premises (id),
    type        text    NOT NULL,
    name        text    NOT NULL,
    model       text    NOT NULL DEFAULT '',
    pop         integer NOT NULL DEFAULT 1,
    trigger     text    NOT NULL DEFAULT 'option',
    not_before  integer NOT NULL DEFAULT 0,
    created_at  integer NOT NULL
) STRICT;
CREATE INDEX devices_account ON devices (account_id);

CREATE TABLE services (
    id         text    PRIMARY KEY,
    name       text    NOT NULL,
    not_before integer NOT NULL DEFAULT 0,
    created_at integer NOT NULL
) STRICT;

-- An account's consent for a service; deleted when it ends, so a new consent has a new service account id. Registrations
-- refer to it, so no service can be a member without it.
CREATE TABLE service_links (
    service_id         text    NOT NULL REFERENCES services (id),
    account_id         text    NOT NULL REFERENCES accounts (id),
    service_account_id integer NOT NULL,
    created_at         integer NOT NULL,
    PRIMARY KEY (service_id, account_id),
    UNIQUE (service_id, service_account_id)
) STRICT;
CREATE INDEX service_links_account ON service_links (account_id);

-- A row for each device of type gateway; the addresses are empty until it declares them. The row's lock orders all changes
-- of the gateway's groups, so that revision order is commit order.
CREATE TABLE gateways (
    id          integer PRIMARY KEY REFERENCES devices (id),
    account_id  text    NOT NULL REFERENCES accounts (id),
    premises_id text    NOT NULL REFERENCES premises (id),
    lan_prefix  text    NOT NULL DEFAULT '',
    lan_addr    text    NOT NULL DEFAULT '',
    uplink      text    NOT NULL DEFAULT '',
    range_first text    NOT NULL DEFAULT '',
    range_last  text    NOT NULL DEFAULT '',
    revision    integer NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX gateways_premises ON gateways (premises_id);

-- Apart from gateways, so that recording a poll never waits for a change and no change waits for it.
CREATE TABLE gateway_polls (
    gateway_id     integer PRIMARY KEY REFERENCES gateways (id),
    epoch          text    NOT NULL DEFAULT '',
    acked_revision integer NOT NULL DEFAULT 0,
    polled_at      integer NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE groups (
    id               text    PRIMARY KEY,
    account_id       text    NOT NULL REFERENCES accounts (id),
    premises_id      text    NOT NULL REFERENCES premises (id),
    gateway_id       integer NOT NULL REFERENCES gateways (id),
    name             text    NOT NULL,
    ip               text    NOT NULL,
    generation       integer NOT NULL,
    next_source      integer NOT NULL DEFAULT 1, -- the number of the next member, by role
    next_destination integer NOT NULL DEFAULT 1,
    created_at       integer NOT NULL,
    UNIQUE (account_id, premises_id, name),
    UNIQUE (gateway_id, ip)
) STRICT;

-- One row per group IP: free -> allocated -> quarantined -> free. A row that was ever handed out stays, even if its address
-- leaves the declared range, so that its generation never starts again.
CREATE TABLE addresses (
    gateway_id        integer NOT NULL REFERENCES gateways (id),
    ip                text    NOT NULL,
    state             text    NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'allocated', 'quarantined')),
    group_id          text    UNIQUE REFERENCES groups (id),
    last_group_name   text    NOT NULL DEFAULT '',
    generation        integer NOT NULL DEFAULT 0,
    released_at       integer NOT NULL DEFAULT 0,
    released_revision integer NOT NULL DEFAULT 0,
    PRIMARY KEY (gateway_id, ip),
    CHECK ((state = 'allocated') = (group_id IS NOT NULL))
) STRICT;

-- The group holds premises and gateway.
CREATE TABLE registrations (
    id            text    PRIMARY KEY,
    group_id      text    NOT NULL REFERENCES groups (id),
    account_id    text    NOT NULL,
    member_type   text    NOT NULL CHECK (member_type IN ('Device', 'Service')),
    member_id     integer NOT NULL,
    role          text    NOT NULL CHECK (role IN ('source', 'destination')),
    instance      text    NOT NULL,
    owner_device  integer REFERENCES devices (id),
    owner_service text,
    number        integer NOT NULL,
    private_ipv4  text    NOT NULL,
    public_ipv4   text    NOT NULL,
    ipv6          text    NOT NULL,
    port          integer NOT NULL,
    device_type   text    NOT NULL,
    model         text    NOT NULL,
    name          text    NOT NULL,
    created_at    integer NOT NULL,
    FOREIGN KEY (owner_service, member_id) REFERENCES service_links (service_id, service_account_id),
    CHECK ((owner_device IS NULL) <> (owner_service IS NULL))
) STRICT;
-- The service is part of the key, so that a service can't touch another's registration even if both know the account by one id.
CREATE UNIQUE INDEX registrations_member ON registrations (group_id, member_type, member_id, role, instance, coalesce(owner_service, ''));
CREATE INDEX registrations_owner_device ON registrations (owner_device) WHERE owner_device IS NOT NULL;
CREATE INDEX registrations_owner_service ON registrations (owner_service, member_id) WHERE owner_service IS NOT NULL;

-- Apart from registrations, so that a renewal touches one narrow row.
CREATE TABLE leases (
    registration_id text    PRIMARY KEY REFERENCES registrations (id) ON DELETE CASCADE,
    ttl_seconds     integer NOT NULL,
    expires_at      integer NOT NULL,
    removable_at    integer NOT NULL -- expires_at and the grace
) STRICT;
CREATE INDEX leases_removable_at ON leases (removable_at);

-- +goose Down
DROP TABLE leases;
DROP TABLE registrations;
DROP TABLE addresses;
DROP TABLE groups;
DROP TABLE gateway_polls;
DROP TABLE gateways;
DROP TABLE service_links;
DROP TABLE services;
DROP TABLE devices;
DROP TABLE premises;
DROP TABLE accounts;
DROP TABLE sealing_keys;
DROP TABLE signing_keys;
DROP TABLE installation;
