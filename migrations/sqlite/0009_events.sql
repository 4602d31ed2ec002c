-- +goose Up
-- What happened, written in the transaction of what it tells about: outbox and replay log at once (SPEC §7). The events of a group,
-- and those of an account that belong to no group (group_id is empty), are each numbered 1, 2, 3, … without a gap: whoever writes one
-- raises groups.rev or accounts.account_rev first, and that row's lock makes the order of the numbers that of the commits.
ALTER TABLE groups ADD COLUMN rev integer NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN account_rev integer NOT NULL DEFAULT 0;

CREATE TABLE events (
    id           integer PRIMARY KEY AUTOINCREMENT, -- rises with rev; among streams it is not the order of commits
    account_id   text   NOT NULL, -- no references: events outlive what they tell about
    premises_id  text   NOT NULL, -- empty if it is of none
    group_id     text   NOT NULL,
    rev          integer NOT NULL,
    type         text   NOT NULL,
    payload      text   NOT NULL, -- JSON: the state of the group, or what the account has now
    created_at   integer NOT NULL,
    published_at integer NOT NULL DEFAULT 0, -- when the queue acknowledged it; 0 if it didn't yet
    UNIQUE (account_id, group_id, rev)
) STRICT;
CREATE INDEX events_unpublished ON events (id) WHERE published_at = 0;
-- Which stream of the queue the events were published to; another one has lost them.
ALTER TABLE installation ADD COLUMN event_queue text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE installation DROP COLUMN event_queue;
DROP TABLE events;
ALTER TABLE accounts DROP COLUMN account_rev;
ALTER TABLE groups DROP COLUMN rev;
