-- The keys. `version` is the generation and the transaction that wrote the key last; see `lineage`.
-- Room is left in each page, so that a rewritten value stays in it and no index is touched.
CREATE TABLE {schema}.entry (
    key bytea PRIMARY KEY,
    version bigint NOT NULL,
    value bytea NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The entries of all logs. `major` is as `entry.version`; `ordinal` the place among the entries of one commit.
CREATE TABLE {schema}.log (
    name bytea NOT NULL,
    major bigint NOT NULL,
    ordinal integer NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (name, major, ordinal)
);

-- Which server and timeline gave the transaction ids of each generation. The last row is in force.
CREATE TABLE {schema}.lineage (
    generation integer PRIMARY KEY CHECK (generation BETWEEN 0 AND 32767),
    system_identifier bigint NOT NULL,
    timeline bigint NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE {schema}.entry IS 'Flames: keys and their values. Read as you like; write only through Flames.';
COMMENT ON TABLE {schema}.log IS 'Flames: the entries of all logs. Read as you like; write only through Flames.';
COMMENT ON TABLE {schema}.lineage IS 'Flames: where transaction ids came from. See the adapter''s documentation before writing.';

-- Applies a commit. Answers the version, or minus the place (from 1) of a check that does not hold; then nothing is written.
--
-- generation       as the connection found it in `lineage`
-- locks, shared    the advisory locks to take, in ascending order, each once
-- expected         0: absent; -1: present; else: at that version
-- replaced         how many of the puts, which stand first, are of keys that a check says are there
--
-- Written for the short commit: what has one check or one put runs the cheapest statement that does it.
CREATE FUNCTION {schema}.commit_1(
    generation integer,
    locks bigint[], shared boolean[],
    check_keys bytea[], expected bigint[],
    put_keys bytea[], put_values bytea[], replaced integer, delete_keys bytea[],
    log_names bytea[], log_payloads bytea[]
) RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
DECLARE
    checks CONSTANT integer := cardinality(check_keys);
    puts CONSTANT integer := cardinality(put_keys);
    base CONSTANT bigint := generation::bigint << {transaction_bits};
    granted boolean;
    found_version bigint;
    holds boolean;
    failed bigint;
    written bigint;
BEGIN
    -- Assignments, since plpgsql evaluates them without a query of their own.
    FOR place IN 1 .. cardinality(locks) LOOP
        IF shared[place] THEN
            granted := pg_advisory_xact_lock_shared(locks[place]) IS NULL;
        ELSE
            granted := pg_advisory_xact_lock(locks[place]) IS NULL;
        END IF;
    END LOOP;

    -- From here on statements of their own: their snapshots are younger than the locks.
    IF checks = 1 AND puts = 1 AND replaced = 1 THEN
        -- One key that is there, checked and put: no row, no transaction id.
        UPDATE {schema}.entry AS e SET version = base | pg_current_xact_id()::text::bigint, value = put_values[1]
            WHERE e.key = put_keys[1] AND (expected[1] = -1 OR e.version = expected[1])
            RETURNING e.version INTO written;
        IF NOT FOUND THEN
            RETURN -1;
        END IF;
    ELSE
        IF checks = 1 THEN
            SELECT e.version INTO found_version FROM {schema}.entry AS e WHERE e.key = check_keys[1];
            holds := CASE expected[1]
                WHEN 0 THEN found_version IS NULL
                WHEN -1 THEN found_version IS NOT NULL
                ELSE coalesce(found_version = expected[1], false)
            END;
            IF NOT holds THEN
                RETURN -1;
            END IF;
        ELSIF checks > 1 THEN
            SELECT c.place INTO failed
                FROM unnest(check_keys, expected) WITH ORDINALITY AS c(key, expected, place)
                LEFT JOIN {schema}.entry AS e ON e.key = c.key
                WHERE NOT CASE c.expected
                    WHEN 0 THEN e.key IS NULL
                    WHEN -1 THEN e.key IS NOT NULL
                    ELSE coalesce(e.version = c.expected, false)
                END
                LIMIT 1;
            IF FOUND THEN
                RETURN -failed;
            END IF;
        END IF;

        written := base | pg_current_xact_id()::text::bigint;

        -- An update of what is there costs less than an insert that finds it.
        IF replaced = 1 THEN
            UPDATE {schema}.entry AS e SET version = written, value = put_values[1] WHERE e.key = put_keys[1];
        ELSIF replaced > 1 THEN
            UPDATE {schema}.entry AS e SET version = written, value = p.value
                FROM unnest(put_keys[1:replaced], put_values[1:replaced]) AS p(key, value)
                WHERE e.key = p.key;
        END IF;
        IF puts - replaced = 1 THEN
            INSERT INTO {schema}.entry (key, version, value) VALUES (put_keys[puts], written, put_values[puts])
                ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value;
        ELSIF puts > replaced THEN
            INSERT INTO {schema}.entry (key, version, value)
                SELECT p.key, written, p.value
                FROM unnest(put_keys[replaced + 1:], put_values[replaced + 1:]) AS p(key, value)
                ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value;
        END IF;
    END IF;

    IF cardinality(delete_keys) > 0 THEN
        DELETE FROM {schema}.entry AS e WHERE e.key = ANY (delete_keys);
    END IF;
    IF cardinality(log_names) = 1 THEN
        INSERT INTO {schema}.log (name, major, ordinal, payload) VALUES (log_names[1], written, 0, log_payloads[1]);
    ELSIF cardinality(log_names) > 1 THEN
        INSERT INTO {schema}.log (name, major, ordinal, payload)
            SELECT a.name, written, a.place - 1, a.payload
            FROM unnest(log_names, log_payloads) WITH ORDINALITY AS a(name, payload, place);
    END IF;
    RETURN written;
END
$$;
