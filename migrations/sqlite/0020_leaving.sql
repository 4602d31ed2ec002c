-- +goose Up
-- A gateway may go on forwarding to the relay that it leaves until it has heard that it is to copy itself, or to forward elsewhere: so long that relay holds the
-- premises (docs/adr/0079).
ALTER TABLE gateways ADD COLUMN leaving_id integer NOT NULL DEFAULT 0;       -- the relay that is being left; 0 is none
ALTER TABLE gateways ADD COLUMN leaving_revision integer NOT NULL DEFAULT 0; -- the gateway's first that doesn't name it
ALTER TABLE gateways ADD COLUMN leaving_until integer NOT NULL DEFAULT 0;    -- when it is left whatever the gateway says
CREATE INDEX gateways_leaving ON gateways (leaving_id, premises_id, id) WHERE leaving_id <> 0;

DROP TRIGGER gateways_raise_relay;
-- +goose StatementBegin
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways
    WHEN (new.relay_id <> 0 OR new.leaving_id <> 0) AND new.revision <> old.revision AND new.forwarding = old.forwarding
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id IN (new.relay_id, new.leaving_id);
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER gateways_raise_relay;
-- Who is leaving a relay has left it, which the relay is to hear.
UPDATE relays SET revision = revision + 1 WHERE id IN (SELECT leaving_id FROM gateways WHERE leaving_id <> 0);
INSERT INTO relay_departures (premises_id, relay_id, revision)
    SELECT DISTINCT w.premises_id, rl.id, rl.revision FROM gateways w JOIN relays rl ON rl.id = w.leaving_id WHERE w.leaving_id <> 0
    ON CONFLICT (premises_id, relay_id) DO UPDATE SET revision = excluded.revision;
DROP INDEX gateways_leaving;
ALTER TABLE gateways DROP COLUMN leaving_until;
ALTER TABLE gateways DROP COLUMN leaving_revision;
ALTER TABLE gateways DROP COLUMN leaving_id;
-- +goose StatementBegin
CREATE TRIGGER gateways_raise_relay AFTER UPDATE OF revision ON gateways
    WHEN new.relay_id <> 0 AND new.revision <> old.revision AND new.forwarding = old.forwarding
BEGIN
    UPDATE relays SET revision = revision + 1 WHERE id = new.relay_id;
END;
-- +goose StatementEnd
