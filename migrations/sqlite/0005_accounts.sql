-- +goose Up
-- Which devices and services are to join every new group, as JSON; {} is nobody.
ALTER TABLE accounts ADD COLUMN join_policy text NOT NULL DEFAULT '{}';

-- What the account consents to: scopes; premises, * for all, otherwise ids each between two spaces; until when, 0 for ever.
ALTER TABLE service_links RENAME COLUMN created_at TO granted_at;
ALTER TABLE service_links ADD COLUMN granted_by text NOT NULL DEFAULT 'operator';
ALTER TABLE service_links ADD COLUMN scopes text NOT NULL DEFAULT 'gc:register gc:events gc:notify';
ALTER TABLE service_links ADD COLUMN premises_filter text NOT NULL DEFAULT '*';
ALTER TABLE service_links ADD COLUMN expires_at integer NOT NULL DEFAULT 0;
CREATE INDEX service_links_expires_at ON service_links (expires_at) WHERE expires_at > 0;

-- Whom a user is at an external issuer: by its name for them alone, never by what it says of them, such as an e-mail address.
CREATE TABLE identities (
    id         text PRIMARY KEY,
    issuer     text NOT NULL,
    subject    text NOT NULL,
    user_id    text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at integer NOT NULL,
    UNIQUE (issuer, subject)
) STRICT;
CREATE INDEX identities_user ON identities (user_id);

-- +goose Down
DROP TABLE identities;
DROP INDEX service_links_expires_at;
ALTER TABLE service_links DROP COLUMN expires_at;
ALTER TABLE service_links DROP COLUMN premises_filter;
ALTER TABLE service_links DROP COLUMN scopes;
ALTER TABLE service_links DROP COLUMN granted_by;
ALTER TABLE service_links RENAME COLUMN granted_at TO created_at;
ALTER TABLE accounts DROP COLUMN join_policy;
