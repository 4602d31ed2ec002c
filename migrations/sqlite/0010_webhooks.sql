-- +goose Up
-- Where a partner's service wants its events sent.
CREATE TABLE webhooks (
    id                text    PRIMARY KEY,
    service_id        text    NOT NULL REFERENCES services (id),
    url               text    NOT NULL,
    event_types       text    NOT NULL, -- |type|type|; empty is all
    disabled          text    NOT NULL DEFAULT '', -- why nothing is sent; empty if it is
    secret_sealed     blob    NOT NULL,
    old_secret_sealed blob    NOT NULL, -- signs as well until old_secret_until
    old_secret_until  integer NOT NULL DEFAULT 0,
    failures          integer NOT NULL DEFAULT 0, -- since the last success
    failing_since     integer NOT NULL DEFAULT 0,
    paused_until      integer NOT NULL DEFAULT 0,
    last_success      integer NOT NULL DEFAULT 0,
    last_failure      integer NOT NULL DEFAULT 0,
    last_error        text    NOT NULL DEFAULT '',
    created_at        integer NOT NULL
) STRICT;
CREATE INDEX webhooks_service ON webhooks (service_id);

-- What a webhook has not acknowledged yet, of each stream of events: everything after rev up to newest_rev. Written in the transaction of the
-- event. No references: nobody who changes a group waits for somebody who removes a webhook or a link, or fails because of that.
CREATE TABLE webhook_streams (
    webhook_id         text    NOT NULL,
    service_account_id integer NOT NULL,
    group_id           text    NOT NULL, -- empty: beginning and end of the link
    account_id         text    NOT NULL,
    rev                integer NOT NULL,
    newest_rev         integer NOT NULL,
    attempts           integer NOT NULL DEFAULT 0, -- that failed since the last success
    due_at             integer NOT NULL, -- when it is tried; while somebody tries, when somebody else may
    PRIMARY KEY (webhook_id, service_account_id, group_id)
) STRICT;
CREATE INDEX webhook_streams_due ON webhook_streams (webhook_id, due_at);
CREATE INDEX webhook_streams_stream ON webhook_streams (account_id, group_id);

-- +goose Down
DROP TABLE webhook_streams;
DROP TABLE webhooks;
