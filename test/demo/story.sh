# story.sh: sourced after clusters.sh.  The table of the three-hour example, and
# what happens to it at the source before each hour's run.

hour_1() {
    source_sql <<'SQL'
CREATE TABLE media (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    s3_path varchar(1024),
    format varchar(5),
    type smallint,
    updated_at timestamp
);
COMMENT ON COLUMN media.type IS '1 image, 2 video';
CREATE ROLE reader LOGIN PASSWORD 'read-only';
GRANT SELECT ON media TO reader;
INSERT INTO media (s3_path, format, type, updated_at) VALUES
    ('/a.jpg', 'jpg', 1, '2021-01-01 00:20'),
    ('/b.jpg', 'jpg', 1, '2021-01-01 00:20'),
    ('/c.jpg', 'jpg', 1, '2021-01-01 00:30');
SQL
}

hour_2() {
    source_sql <<'SQL'
UPDATE media SET s3_path = '/xx.jpg', updated_at = '2021-01-01 01:21' WHERE id = 1;
INSERT INTO media (s3_path, format, type, updated_at) VALUES
    ('/d.mp4', 'mp4', 2, '2021-01-01 01:30'),
    ('/e.jpg', 'jpg', 1, '2021-01-01 01:40');
SQL
}

# Row 6 commits late: its stamp is older than the second run.
hour_3() {
    source_sql <<'SQL'
UPDATE media SET s3_path = '/zz.gif', format = 'gif', updated_at = '2021-01-01 02:30' WHERE id = 2;
DELETE FROM media WHERE id = 3;
INSERT INTO media (s3_path, format, type, updated_at) VALUES ('/f.jpg', 'jpg', 1, '2021-01-01 01:40');
SQL
}
