-- +goose Up
-- The answers of requests that carried an Idempotency-Key, for 24 h. Neither who asked nor the key can be told from a row, and the
-- answer opens only with the key (docs/adr/0020).
CREATE TABLE idempotency_keys (
    id          bytea   PRIMARY KEY, -- of the key, the caller and the operation
    fingerprint bytea   NOT NULL,    -- of the request
    answer      bytea   NOT NULL,    -- sealed
    expires_at  bigint  NOT NULL
);
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);

-- What gateways are told, and what the cooldown follows from. After a change the longer of both counts until gateways that haven't heard of
-- it have stopped copying.
ALTER TABLE installation ADD COLUMN max_stale_seconds bigint  NOT NULL DEFAULT 900;
ALTER TABLE installation ADD COLUMN max_stale_before  bigint  NOT NULL DEFAULT 900;
ALTER TABLE installation ADD COLUMN max_stale_until   bigint  NOT NULL DEFAULT 0; -- how long max_stale_before counts

-- +goose Down
ALTER TABLE installation DROP COLUMN max_stale_until;
ALTER TABLE installation DROP COLUMN max_stale_before;
ALTER TABLE installation DROP COLUMN max_stale_seconds;
DROP TABLE idempotency_keys;
