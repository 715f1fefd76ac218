"""What sensors measured, a partition per UTC day.

Partitions are made when a reading of their day comes, however late, and dropped whole when retention ends.
The primary key begins with what readings are asked by, so that it is the only index; it holds the time, as
a key of partitions must. A reading keeps its time, so one that comes again meets itself.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sensor_readings (
            device_id    text NOT NULL,
            sensor       text NOT NULL,
            seq          bigint NOT NULL,
            captured_at  timestamptz NOT NULL,
            monotonic_ns bigint,
            values       jsonb NOT NULL,
            stored_at    timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (device_id, sensor, captured_at, seq)
        ) PARTITION BY RANGE (captured_at);
        COMMENT ON COLUMN sensor_readings.seq IS 'counts up by one per device and sensor';
        COMMENT ON COLUMN sensor_readings.captured_at IS 'by the device''s wall clock';
        COMMENT ON COLUMN sensor_readings.monotonic_ns IS 'nanoseconds since the device started';
        COMMENT ON COLUMN sensor_readings.stored_at IS 'when first written; a replay keeps it';

        CREATE FUNCTION ensure_sensor_readings_day(day date) RETURNS void LANGUAGE plpgsql AS $$
        DECLARE
            name text := 'sensor_readings_' || to_char(day, 'YYYYMMDD');
        BEGIN
            IF to_regclass(name) IS NOT NULL THEN
                RETURN;
            END IF;
            -- What attaching takes as well. Another may have made it while this one waited.
            LOCK TABLE sensor_readings IN SHARE UPDATE EXCLUSIVE MODE;
            IF to_regclass(name) IS NOT NULL THEN
                RETURN;
            END IF;
            -- Made apart and then attached: made as a partition it would lock out all who read and write.
            EXECUTE format('CREATE TABLE %I (LIKE sensor_readings INCLUDING ALL)', name);
            EXECUTE format(
                'ALTER TABLE sensor_readings ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC'
            );
        END
        $$;

        CREATE FUNCTION drop_sensor_readings_before(day date) RETURNS SETOF text LANGUAGE plpgsql AS $$
        DECLARE
            name text;
        BEGIN
            LOCK TABLE sensor_readings IN SHARE UPDATE EXCLUSIVE MODE;
            FOR name IN
                SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                WHERE inhparent = 'sensor_readings'::regclass
                    AND relname < 'sensor_readings_' || to_char(day, 'YYYYMMDD')
                ORDER BY relname
            LOOP
                EXECUTE format('DROP TABLE %I', name);
                RETURN NEXT name;
            END LOOP;
        END
        $$;
    """)
