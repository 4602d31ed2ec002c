-- +goose Up
-- What a link granted before its consent was changed: what its service could hear then it may still read when it goes on from there, as far as
-- the consent of now lets it. Kept for as long as events are.
CREATE TABLE past_consents (
    service_id         text   NOT NULL,
    service_account_id integer NOT NULL,
    scopes             text   NOT NULL,
    premises_filter    text   NOT NULL,
    granted_at         integer NOT NULL,
    ended_at           integer NOT NULL, -- by a change, or by itself before that
    FOREIGN KEY (service_id, service_account_id) REFERENCES service_links (service_id, service_account_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX past_consents_link ON past_consents (service_id, service_account_id);

-- +goose Down
DROP TABLE past_consents;
