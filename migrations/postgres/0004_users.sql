-- +goose Up
-- The people who log in. What they are handed stands here as a digest only: a password as argon2id, a token of a session or an invitation as SHA-256.

CREATE TABLE users (
    id            text    PRIMARY KEY,
    account_id    text    NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name          text    NOT NULL UNIQUE, -- in lower case
    password_hash text    NOT NULL,
    not_before    bigint  NOT NULL DEFAULT 0, -- no token that was issued earlier is good
    created_at    bigint  NOT NULL
);
CREATE INDEX users_account ON users (account_id);

-- Ends 12 h after it was last used and 7 days after it began.
CREATE TABLE sessions (
    hash         bytea    PRIMARY KEY,
    user_id      text    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at   bigint  NOT NULL,
    used_at      bigint  NOT NULL,
    confirmed_at bigint  NOT NULL -- when the password was typed last
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_created_at ON sessions (created_at);

-- Deleted when they are used.
CREATE TABLE invitations (
    hash       bytea    PRIMARY KEY,
    account_id text    REFERENCES accounts (id) ON DELETE CASCADE, -- whose further user it makes; null makes a new account
    expires_at bigint  NOT NULL
);

-- The networks that a user has logged in from: failures of strangers elsewhere don't make somebody wait there.
CREATE TABLE user_networks (
    user_id text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    network text NOT NULL,
    PRIMARY KEY (user_id, network)
);

-- +goose Down
DROP TABLE user_networks;
DROP TABLE invitations;
DROP TABLE sessions;
DROP TABLE users;
