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

-- +goose Down
DROP TABLE idempotency_keys;
