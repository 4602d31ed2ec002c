-- +goose Up
-- Refusals that are alike are one row: how many it stands for.
ALTER TABLE audit_rows ADD COLUMN count integer NOT NULL DEFAULT 1;

-- Where the kept part of the chain begins: the last row that was removed because of its age, and the hash there.
ALTER TABLE audit_head ADD COLUMN base_seq integer NOT NULL DEFAULT 0;
ALTER TABLE audit_head ADD COLUMN base_hash text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE audit_head DROP COLUMN base_hash;
ALTER TABLE audit_head DROP COLUMN base_seq;
ALTER TABLE audit_rows DROP COLUMN count;
