-- Gives a role the least rights with which Vaultferry can back up one database, and no right to change anything in it.
--
--   psql -X -d DATABASE -v role=backup -f grant-backup-role.sql
--
-- Run it as a superuser (on a managed service: as its administrator), once in each database. It may be run again at any time; do so when the
-- readiness check (vaultferry instance validate) finds something new. The role is made when it is missing, without a password: set one with
-- \password ROLE.
--
-- Since PostgreSQL 14 the role becomes a member of pg_read_all_data, which may read every table of every database that it may connect to.
-- With -v per_database=1, always before 14, and before 16 for a role that inherits nothing (NOINHERIT), it is granted this database's tables and sequences one by one, and those that their owners
-- will make in the same schemas.

\set ON_ERROR_STOP on
\if :{?per_database}
\else
\set per_database 0
\endif
SELECT current_setting('server_version_num')::integer >= CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = :'role' AND NOT rolinherit)
                                                              THEN 160000 ELSE 140000 END
       AND NOT :'per_database'::boolean AS all_data,
       current_setting('server_version_num')::integer >= 160000 AS inherit_is_said,
       current_setting('server_version_num')::integer >= 180000 AS knows_later_large_objects \gset

SELECT format('CREATE ROLE %I LOGIN', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role')
WHERE NOT has_database_privilege(:'role', current_database(), 'connect') \gexec

\if :all_data
-- Since 16 a membership says by itself that its rights are used without SET ROLE; an earlier one may have said otherwise.
SELECT format('GRANT pg_read_all_data TO %I%s', :'role', CASE WHEN :'inherit_is_said'::boolean THEN ' WITH INHERIT TRUE' ELSE '' END)
WHERE NOT pg_has_role(:'role', 'pg_read_all_data', 'usage') \gexec
\else
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', nspname, :'role') FROM pg_namespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND NOT has_schema_privilege(:'role', oid, 'usage') \gexec
-- What pg_dump reads: tables ("r", partitioned "p") and sequences; of extensions' own only those with configuration.
SELECT format('GRANT SELECT ON %s %I.%I TO %I', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname, :'role')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
       OR EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))
  AND NOT has_table_privilege(:'role', c.oid, 'select') \gexec
-- What the owners of tables will make in their schemas from now on.
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON %s TO %I', owner, nspname, kind, :'role')
FROM (SELECT DISTINCT pg_get_userbyid(c.relowner) AS owner, n.nspname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') AS makers,
     (VALUES ('TABLES'), ('SEQUENCES')) AS kinds(kind) \gexec
\endif

-- Large objects have rights of their own, which pg_read_all_data does not know. Before 18 new ones need this script again.
SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', m.oid, :'role') FROM pg_largeobject_metadata m
WHERE NOT EXISTS (SELECT FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) AS a
                  WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(:'role'::name, a.grantee, 'usage'))) \gexec

\if :knows_later_large_objects
-- What those who have some now will make from now on.
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT SELECT ON LARGE OBJECTS TO %I', pg_get_userbyid(lomowner), :'role')
FROM (SELECT DISTINCT lomowner FROM pg_largeobject_metadata) AS owners \gexec
\endif

-- The last, as the administrators of some managed services may not do it before version 16 (see proto/errors/RowSecurityHidesRows.md).
-- Only where a table hides rows from somebody: pg_dump refuses to dump a part of them.
SELECT format('ALTER ROLE %I BYPASSRLS', :'role')
WHERE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relrowsecurity AND n.nspname !~ '^pg_')
  AND EXISTS (SELECT FROM pg_roles WHERE rolname = :'role' AND NOT rolbypassrls AND NOT rolsuper) \gexec
