-- +goose Up
-- What a gateway's row says of its relay spares everybody who has none the look-up that 0017's trigger does at each change of a group.
ALTER TABLE gateways ADD COLUMN relay_id bigint NOT NULL DEFAULT 0;    -- that of relay_assignments; 0 is none
ALTER TABLE gateways ADD COLUMN forwarding boolean NOT NULL DEFAULT false; -- that of relay_assignments
UPDATE gateways SET
    relay_id = coalesce((SELECT ra.relay_id FROM relay_assignments ra WHERE ra.premises_id = gateways.premises_id), 0),
    forwarding = coalesce((SELECT ra.forwarding FROM relay_assignments ra WHERE ra.premises_id = gateways.premises_id), false);
CREATE INDEX gateways_relay ON gateways (relay_id, premises_id, id) WHERE relay_id <> 0;

-- A relay's group information changes with that of each gateway it serves, but for who copies, which is none of its business.
DROP TRIGGER gateways_raise_relay ON gateways;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION raise_relay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id = NEW.relay_id;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways FOR EACH ROW
    WHEN (NEW.relay_id <> 0 AND NEW.revision <> OLD.revision AND NEW.forwarding = OLD.forwarding) EXECUTE FUNCTION raise_relay();

-- +goose Down
DROP TRIGGER gateways_raise_relay ON gateways;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION raise_relay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id = (SELECT a.relay_id FROM relay_assignments a WHERE a.premises_id = NEW.premises_id);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways FOR EACH ROW WHEN (NEW.revision <> OLD.revision) EXECUTE FUNCTION raise_relay();
DROP INDEX gateways_relay;
ALTER TABLE gateways DROP COLUMN forwarding;
ALTER TABLE gateways DROP COLUMN relay_id;
