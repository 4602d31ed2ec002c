-- +goose Up
-- What may be used once, such as the jti of a proof, as digests, until it would not be valid any more.
CREATE TABLE replays (
    key        text    PRIMARY KEY,
    expires_at integer NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX replays_expires_at ON replays (expires_at);

-- +goose Down
DROP TABLE replays;
