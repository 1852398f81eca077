-- The whole record is in `doc`, as JSON; the columns beside it are what is searched for.
CREATE TABLE jobs (
    id BIGINT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    node TEXT NOT NULL,
    priority BIGINT NOT NULL,
    submitted_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX jobs_owner ON jobs (owner, id);
CREATE INDEX jobs_node ON jobs (node, state);
CREATE INDEX jobs_state ON jobs (state, due_ms);
CREATE TABLE dependencies (
    job BIGINT NOT NULL,
    needs BIGINT NOT NULL,
    PRIMARY KEY (needs, job)
);
CREATE TABLE incarnations (
    job BIGINT NOT NULL,
    number BIGINT NOT NULL,
    node TEXT NOT NULL,
    checkpoint BIGINT NOT NULL,
    placed_ms BIGINT NOT NULL,
    ended_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (job, number)
);
CREATE TABLE checkpoints (
    id BIGINT PRIMARY KEY,
    job BIGINT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    node TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX checkpoints_job ON checkpoints (job, id);
CREATE INDEX checkpoints_state ON checkpoints (state, id);
CREATE INDEX checkpoints_owner ON checkpoints (owner, id);
-- Where copies of an image are (`held` = 1) or are to be; the node of the store that all nodes share is ''.
CREATE TABLE locations (
    node TEXT NOT NULL,
    checkpoint BIGINT NOT NULL,
    held BIGINT NOT NULL,
    PRIMARY KEY (node, checkpoint)
);
CREATE INDEX locations_checkpoint ON locations (checkpoint);
CREATE TABLE nodes (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    doc TEXT NOT NULL
);
CREATE TABLE events (
    id BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    job BIGINT NOT NULL,
    node TEXT NOT NULL,
    owner TEXT NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX events_job ON events (job, id);
-- Answers to requests that may be repeated.
CREATE TABLE requests (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, key)
);
CREATE INDEX requests_at ON requests (at_ms);
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
