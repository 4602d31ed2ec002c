-- +goose Up
-- One key is one node's: a relay tells its peers apart by it, and would take none of a list with the same twice (docs/adr/0076). Of nodes that share one the
-- oldest keeps it; the others copy at home until they have keys of their own.
UPDATE gateways SET tunnel_key = '', revision = revision + 1
    WHERE tunnel_key <> '' AND EXISTS (SELECT 1 FROM gateways o WHERE o.tunnel_key = gateways.tunnel_key AND o.id < gateways.id);
CREATE UNIQUE INDEX gateways_tunnel_key ON gateways (tunnel_key) WHERE tunnel_key <> '';

-- +goose Down
DROP INDEX gateways_tunnel_key;
