PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')));
INSERT INTO goose_db_version VALUES(1,0,1,'2026-11-21 09:00:00');
INSERT INTO goose_db_version VALUES(2,1,1,'2026-11-21 09:00:01');
CREATE TABLE installation (
    one             integer PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    epoch           text    NOT NULL, -- names this life of the database; rotated after a restore
    restored_at     integer NOT NULL DEFAULT 0, -- when this life began by restoring a backup; 0 if it didn't
    clock_offset_ms integer NOT NULL DEFAULT 0, -- added to the clock; only tests set it
    expiry_ran_at   integer NOT NULL DEFAULT 0, -- when leases were last looked at, on any replica
    amnesty_ms      integer NOT NULL DEFAULT 0, -- how much every lease is being extended by after an outage; 0 if none is
    amnesty_after   text    NOT NULL DEFAULT '' -- the last registration that was extended
) STRICT;
INSERT INTO installation VALUES(1,'00c0ffee00c0ffee',0,0,1795000000000,0,'');
CREATE TABLE signing_keys (
    kid            text    PRIMARY KEY,
    alg            text    NOT NULL,
    private_sealed blob    NOT NULL, -- AES-256-GCM under the key-encryption key
    created_at     integer NOT NULL
) STRICT;
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
INSERT INTO accounts VALUES('a_01','The Smiths',1790000000000);
CREATE TABLE premises (
    id                 text    PRIMARY KEY,
    account_id         text    NOT NULL REFERENCES accounts (id),
    name               text    NOT NULL,
    allow_public_range integer NOT NULL DEFAULT 0,
    created_at         integer NOT NULL
) STRICT;
INSERT INTO premises VALUES('p_01','a_01','home',1,1790000000000);
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
INSERT INTO devices VALUES(664123086043511411,'a_01','p_01','gateway','gateway','',0,'option',0,1790000000001);
INSERT INTO devices VALUES(664123086043511412,'a_01','p_01','camera','camera1','C1',1,'option',0,1790000000002);
INSERT INTO devices VALUES(664123086043511413,'a_01','p_01','phone','phone','',1,'option',0,1790000000003);
CREATE TABLE services (
    id         text    PRIMARY KEY,
    name       text    NOT NULL,
    not_before integer NOT NULL DEFAULT 0,
    created_at integer NOT NULL
) STRICT;
INSERT INTO services VALUES('svc-upload','Upload',0,1790000000000);
CREATE TABLE service_links (
    service_id         text    NOT NULL REFERENCES services (id),
    account_id         text    NOT NULL REFERENCES accounts (id),
    service_account_id integer NOT NULL,
    created_at         integer NOT NULL,
    PRIMARY KEY (service_id, account_id),
    UNIQUE (service_id, service_account_id)
) STRICT;
INSERT INTO service_links VALUES('svc-upload','a_01',2908757376510572177,1790000000004);
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
INSERT INTO gateways VALUES(664123086043511411,'a_01','p_01','172.168.0.0/24','172.168.0.1','203.0.113.1','172.168.0.233','172.168.0.235',9);
CREATE TABLE gateway_polls (
    gateway_id     integer PRIMARY KEY REFERENCES gateways (id),
    epoch          text    NOT NULL DEFAULT '',
    acked_revision integer NOT NULL DEFAULT 0,
    polled_at      integer NOT NULL DEFAULT 0
) STRICT;
INSERT INTO gateway_polls VALUES(664123086043511411,'00c0ffee00c0ffee',8,1794999999000);
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
INSERT INTO "groups" VALUES('g_01','a_01','p_01',664123086043511411,'groupcast1','172.168.0.233',2,2,3,1794000000000);
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
INSERT INTO addresses VALUES(664123086043511411,'172.168.0.233','allocated','g_01','groupcast1',2,1793000000000,4);
INSERT INTO addresses VALUES(664123086043511411,'172.168.0.234','quarantined',NULL,'groupcast2',1,1794999000000,9);
INSERT INTO addresses VALUES(664123086043511411,'172.168.0.235','free',NULL,'',0,0,0);
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
INSERT INTO registrations VALUES('r_01','g_01','a_01','Device',664123086043511412,'source','',664123086043511412,NULL,1,'172.168.0.5','203.0.113.1','',0,'camera','C1','camera1',1794000000000);
INSERT INTO registrations VALUES('r_02','g_01','a_01','Service',2908757376510572177,'destination','',NULL,'svc-upload',1,'','96.114.14.140','',0,'','','',1794000000001);
INSERT INTO registrations VALUES('r_03','g_01','a_01','Device',664123086043511413,'destination','',664123086043511413,NULL,2,'','198.51.100.9','2001:db8::9',0,'phone','','phone',1794000000002);
CREATE TABLE leases (
    registration_id text    PRIMARY KEY REFERENCES registrations (id) ON DELETE CASCADE,
    ttl_seconds     integer NOT NULL,
    expires_at      integer NOT NULL,
    removable_at    integer NOT NULL -- expires_at and the grace
) STRICT;
INSERT INTO leases VALUES('r_01',3600,1795003600000,1795003660000);
INSERT INTO leases VALUES('r_02',3600,1795003600000,1795003660000);
INSERT INTO leases VALUES('r_03',30,1795000030000,1795000035000);
CREATE INDEX premises_account ON premises (account_id);
CREATE INDEX devices_account ON devices (account_id);
CREATE INDEX service_links_account ON service_links (account_id);
CREATE INDEX gateways_premises ON gateways (premises_id);
CREATE UNIQUE INDEX registrations_member ON registrations (group_id, member_type, member_id, role, instance, coalesce(owner_service, ''));
CREATE INDEX registrations_owner_device ON registrations (owner_device) WHERE owner_device IS NOT NULL;
CREATE INDEX registrations_owner_service ON registrations (owner_service, member_id) WHERE owner_service IS NOT NULL;
CREATE INDEX leases_removable_at ON leases (removable_at);
COMMIT;
