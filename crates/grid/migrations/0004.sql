-- What users have had done since the grid has counted it.
CREATE TABLE accounts (
    owner TEXT PRIMARY KEY,
    operations BIGINT NOT NULL,
    images BIGINT NOT NULL,
    bytes_stored BIGINT NOT NULL,
    bytes_moved BIGINT NOT NULL
);
