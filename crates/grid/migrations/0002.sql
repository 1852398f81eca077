-- The array that a job is of; 0 where it is of none.
ALTER TABLE jobs ADD COLUMN part_of BIGINT NOT NULL DEFAULT 0;
CREATE INDEX jobs_part_of ON jobs (part_of, id);
-- 1: the system failed under it.
ALTER TABLE incarnations ADD COLUMN broken BIGINT NOT NULL DEFAULT 0;
CREATE INDEX incarnations_placed ON incarnations (placed_ms);
