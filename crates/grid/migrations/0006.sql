-- The name space of checkpoints. parent and checkpoint are 0 where there is none; expires_ms is the largest number
-- where nothing makes it go.
CREATE TABLE names (
    path TEXT PRIMARY KEY,
    id BIGINT NOT NULL,
    directory TEXT NOT NULL,
    parent BIGINT NOT NULL,
    checkpoint BIGINT NOT NULL,
    job BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    doc TEXT NOT NULL
);
CREATE UNIQUE INDEX names_by_id ON names (id);
CREATE INDEX names_by_directory ON names (directory, path);
CREATE INDEX names_by_parent ON names (parent);
CREATE INDEX names_by_checkpoint ON names (checkpoint);
CREATE INDEX names_by_job ON names (job);
CREATE INDEX names_by_expiry ON names (expires_ms);

-- What programs of jobs and others tell each other.
CREATE TABLE metrics (
    job BIGINT NOT NULL,
    name TEXT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (job, name)
);
