-- The units that a node has or may have, of jobs that have several.
CREATE TABLE units (
    job BIGINT NOT NULL,
    unit BIGINT NOT NULL,
    node TEXT NOT NULL,
    PRIMARY KEY (job, unit)
);
CREATE INDEX units_node ON units (node, job);
-- The checkpoint that an image is of, where that has one for each unit; 0 where it has one.
ALTER TABLE checkpoints ADD COLUMN part_of BIGINT NOT NULL DEFAULT 0;
CREATE INDEX checkpoints_part_of ON checkpoints (part_of, id);
