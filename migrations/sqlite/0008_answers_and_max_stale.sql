-- +goose Up
-- The answers of requests that carried an Idempotency-Key, for 24 h. Neither who asked nor the key can be told from a row, and the
-- answer opens only with the key (docs/adr/0020).
CREATE TABLE idempotency_keys (
    id          blob    PRIMARY KEY, -- of the key, the caller and the operation
    fingerprint blob    NOT NULL,    -- of the request
    answer      blob    NOT NULL,    -- sealed
    expires_at  integer NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);

-- +goose Down
DROP TABLE idempotency_keys;
