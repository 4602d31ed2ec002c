-- +goose Up
-- Secrets that we hand out stand here as SHA-256 only; they have 256 random bits, so nobody finds them from it.

-- next: published, doesn't sign yet. active: signs. retiring: published until the last token it signed has ended.
ALTER TABLE signing_keys ADD COLUMN state text NOT NULL DEFAULT 'active' CHECK (state IN ('next', 'active', 'retiring'));
ALTER TABLE signing_keys ADD COLUMN state_since integer NOT NULL DEFAULT 0;

-- The one key of a device. A key belongs to one device of one account until that device is removed or gets another key.
CREATE TABLE device_keys (
    thumbprint text   PRIMARY KEY, -- RFC 7638; the client id of the device too
    device_id  integer NOT NULL UNIQUE REFERENCES devices (id) ON DELETE CASCADE,
    jwk        text   NOT NULL,
    serial     text   NOT NULL DEFAULT '',
    created_at integer NOT NULL
);

-- Deleted when they are used.
CREATE TABLE enrolment_tickets (
    hash        blob    PRIMARY KEY,
    account_id  text    NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    premises_id text    NOT NULL REFERENCES premises (id) ON DELETE CASCADE,
    device_type text    NOT NULL,
    device_id   integer  REFERENCES devices (id) ON DELETE CASCADE, -- whose lost key it replaces
    name        text    NOT NULL DEFAULT '',
    pop         integer NOT NULL DEFAULT 1,
    created_at  integer  NOT NULL,
    expires_at  integer  NOT NULL
);
CREATE INDEX enrolment_tickets_expires_at ON enrolment_tickets (expires_at);

-- Device grants (RFC 8628).
CREATE TABLE device_grants (
    code_hash     blob   PRIMARY KEY,
    user_code     text   NOT NULL UNIQUE,
    client_id     text   NOT NULL,
    scope         text   NOT NULL DEFAULT '',
    device_type   text   NOT NULL DEFAULT '',
    model         text   NOT NULL DEFAULT '',
    serial        text   NOT NULL DEFAULT '',
    jkt           text   NOT NULL DEFAULT '', -- the key it is pinned to from the start
    source_prefix text   NOT NULL DEFAULT '', -- where the request came from: a /24 or a /56
    status        text   NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'approved', 'refused')),
    account_id    text   REFERENCES accounts (id) ON DELETE CASCADE,
    premises_id   text   REFERENCES premises (id) ON DELETE CASCADE,
    user_id       text   NOT NULL DEFAULT '', -- who approved it
    name          text   NOT NULL DEFAULT '',
    interval_s    integer NOT NULL,
    polled_at     integer NOT NULL DEFAULT 0,
    created_at    integer NOT NULL,
    expires_at    integer NOT NULL
);
CREATE INDEX device_grants_expires_at ON device_grants (expires_at);

-- Wrong user codes of one approver within one window.
CREATE TABLE user_code_tries (
    approver text   PRIMARY KEY,
    wrong    integer NOT NULL,
    since    integer NOT NULL
);

CREATE TABLE refresh_tokens (
    hash       blob   PRIMARY KEY,
    jkt        text   NOT NULL, -- useless without this key
    client_id  text   NOT NULL,
    scope      text   NOT NULL DEFAULT '',
    account_id text   NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    device_id  integer REFERENCES devices (id) ON DELETE CASCADE,
    user_id    text   NOT NULL DEFAULT '',
    created_at integer NOT NULL,
    expires_at integer NOT NULL,
    CHECK ((device_id IS NULL) <> (user_id = ''))
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (device_id);
CREATE INDEX refresh_tokens_account ON refresh_tokens (account_id);
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);

-- A service has one or more credentials, so that one can be replaced without a gap: a secret or a set of public keys.
CREATE TABLE service_credentials (
    id          text   PRIMARY KEY,
    service_id  text   NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    name        text   NOT NULL DEFAULT '',
    secret_hash blob   UNIQUE,
    jwks        text   NOT NULL DEFAULT '',
    created_at  integer NOT NULL,
    CHECK ((secret_hash IS NULL) <> (jwks = ''))
);
CREATE INDEX service_credentials_service ON service_credentials (service_id);

-- +goose Down
DROP TABLE service_credentials;
DROP TABLE refresh_tokens;
DROP TABLE user_code_tries;
DROP TABLE device_grants;
DROP TABLE enrolment_tickets;
DROP TABLE device_keys;
ALTER TABLE signing_keys DROP COLUMN state_since;
ALTER TABLE signing_keys DROP COLUMN state;
