-- +goose Up
-- What happened, and who did it. A row is written in the transaction of what it tells about, and is never changed but for its place
-- in the hash chain, which one replica gives it after commit: so writers never wait for each other.
CREATE TABLE audit_rows (
    id         text   PRIMARY KEY,
    at         bigint NOT NULL,
    actor      text   NOT NULL,
    account_id text   NOT NULL, -- no reference: the rows outlive what they tell about
    action     text   NOT NULL,
    object     text   NOT NULL,
    result     text   NOT NULL,
    reason     text   NOT NULL,
    source     text   NOT NULL, -- /24 or /64 of the caller
    request_id text   NOT NULL,
    seq        bigint UNIQUE, -- place in the chain, from 1; null until sealed
    hash       text
);
CREATE INDEX audit_unsealed ON audit_rows (id) WHERE seq IS NULL;
CREATE INDEX audit_account ON audit_rows (account_id, id);

-- The end of the chain. Whoever moves it has to know where it was.
CREATE TABLE audit_head (
    one  smallint PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    seq  bigint   NOT NULL DEFAULT 0,
    hash text     NOT NULL DEFAULT ''
);
INSERT INTO audit_head (one) VALUES (1);

-- What may be used once, such as the jti of a proof, as digests, until it would not be valid any more.
CREATE TABLE replays (
    key        text   PRIMARY KEY,
    expires_at bigint NOT NULL
);
CREATE INDEX replays_expires_at ON replays (expires_at);

-- +goose Down
DROP TABLE replays;
DROP TABLE audit_head;
DROP TABLE audit_rows;
