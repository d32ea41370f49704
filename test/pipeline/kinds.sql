-- kinds.sql: a source with a column of each type that envelopes know, for
-- pipeline.sh, which compares them with those of the real Debezium.  Not here are
-- infinite dates and timestamps, for which Debezium has numbers that say nothing.
-- Its snapshots, not its changes, make dates BC dates AD: row 2 is gone by then.

CREATE TYPE kind AS ENUM ('small', 'large');
CREATE TABLE kinds (
    id integer PRIMARY KEY,
    n integer,
    a_boolean boolean,
    a_smallint smallint,
    a_bigint bigint,
    an_oid oid,
    a_real real,
    a_double double precision,
    a_numeric_10_2 numeric(10, 2),
    a_numeric_30 numeric(30),
    a_numeric numeric,
    a_money money,
    a_text text,
    a_varchar varchar(20),
    a_char char(4),
    a_bytea bytea,
    a_json json,
    a_jsonb jsonb,
    a_uuid uuid,
    an_xml xml,
    an_inet inet,
    a_cidr cidr,
    a_macaddr macaddr,
    a_bit bit,
    a_bit_10 bit(10),
    a_varbit bit varying(9),
    a_date date,
    a_time time,
    a_time_3 time(3),
    a_timetz timetz,
    a_timestamp timestamp,
    a_timestamp_3 timestamp(3),
    a_timestamptz timestamptz,
    an_interval interval,
    an_int4range int4range,
    a_tsrange tsrange,
    a_point point,
    an_enum kind,
    integers integer[],
    texts text[],
    numerics numeric(10, 2)[],
    dates date[]
);
INSERT INTO kinds VALUES
    (1, 1, true, -32768, -9223372036854775808, 4294967295, 0.1, 0.1::float8 + 0.2::float8, 123.45, 123456789012345678901234567890, 1.50, '$12.34',
        E'a"\\\n\t\u00e4', 'v', 'ab', '\xdeadbeef', '{"a":  1, "a": 2}', '{"a": [1.50, null]}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '<a/>',
        '192.168.1.0/24', '10.0.0.0/8', '08:00:2b:01:02:03', B'1', B'1000000001', B'101', '1970-01-02', '00:00:01.5', '23:59:59.999',
        '10:00:00.25+02', '2018-06-20 13:37:03.123456', '2018-06-20 13:37:03.123', '2018-06-20 15:37:03.123456+02', '1 year 2 mons 3 days 04:05:06.789',
        '[1,5)', '[2020-01-01,2021-01-01)', '(1,-2.5)', 'small', '{1,2,NULL}', '{a,"b,c",NULL}', '{1.50,-2.25}', '{1970-01-02,2000-01-01}'),
    (2, 2, false, 32767, 9223372036854775807, 0, -1.5, -1e300, -0.01, -1, -3, '-$0.01', '', '', '', '', '[]', '[]', '00000000-0000-0000-0000-000000000000',
        '<b>x</b>', '::1', '::/0', 'ff:ff:ff:ff:ff:ff', B'0', B'0000000000', B'', '0044-03-15 BC', '00:00', '00:00', '00:00:00-12:59',
        '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999', '1969-12-31 23:59:59+00', '-1 mon', 'empty', '(,)', '(0,0)', 'large', '{}', '{}', '{}', '{}'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, 4, true, 0, 0, 1, 16777216, 123456789.125, 1.28, 0, 0, '$1,234,567.89', repeat('long ', 2000), 'ä€', 'abcd', decode(repeat('00', 90), 'hex'), 'null',
        '"x"', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '<c d="1"/>', '10.1.2.3', '10.1.2.3/32', '00:00:00:00:00:00', B'1', B'1111111111', B'111111111',
        '9999-12-31', '23:59:59.999999', '12:00', '23:59:59.5+00', '2262-04-11 23:47:16', '9999-12-31 23:59:59.999', '2000-01-01 00:00:00.5+00',
        '00:00:00.000001', '[-3,4]', '[2020-01-01,)', '(0.1,1e20)', 'large', '{-1}', '{"",""}', '{0}', '{0001-01-01}');
INSERT INTO kinds (id, n, a_real, a_double, a_numeric, a_numeric_10_2, a_bit_10, a_varbit, a_point, a_date, numerics) VALUES
    (5, 5, 1e-30, 1e-300, 1000000, 0.00, B'0000000001', B'00000000', '(-0,3)', '1582-10-15', '{0.00,100,NULL}'),
    (6, 6, 3e38, 123456789012345, 0.00, 100, B'1000000000', B'0', '(1e-300,1)', '5874897-12-31', '{-100}'),
    (7, 7, 1, 0.1, -120.0100, -100, B'0100000000', B'00000001', NULL, '0001-01-01', '{1}'),
    (8, 8, 'NaN', 'Infinity', 123456789012345678901234567890.1, 99999999.99, NULL, B'100000000', NULL, NULL, NULL),
    (9, 9, '-Infinity', 'NaN', 1e-20, 0.1, NULL, B'000000001', NULL, NULL, NULL);
INSERT INTO kinds (id, n, a_timestamptz, a_time) VALUES (11, 11, 'infinity', '24:00'), (12, 12, '-infinity', '12:34:56.789');
GRANT SELECT ON kinds TO reader;
