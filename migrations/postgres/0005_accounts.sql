-- +goose Up
-- Which devices and services are to join every new group, as JSON; {} is nobody.
ALTER TABLE accounts ADD COLUMN join_policy text NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE accounts DROP COLUMN join_policy;
