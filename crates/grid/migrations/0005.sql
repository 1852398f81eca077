-- Secrets that a service that is started again must have: in hexadecimal digits.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
