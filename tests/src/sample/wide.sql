-- A schema as wide as PostgreSQL's own tests: every kind of object that a database can hold, since version 15. Loaded into an empty database by
-- a superuser; roles are made when missing. Where a name does not matter it has to be quoted.
-- tests/wide_schema.rs checks that no kind of object which the server knows is missing here.

select format('create role %I nologin', name) from unnest(array['wide owner', 'wide "user"', 'wide_mapped']) as name
where not exists (select from pg_roles where rolname = name) \gexec

create schema "wide ""1""";
create schema other authorization "wide owner";
set search_path = "wide ""1""", public;

-- Extensions, whose own objects are not in a dump
create extension citext with schema other;
create extension pg_trgm;
create extension btree_gist;
create extension postgres_fdw;
create extension file_fdw;
create extension bloom;
create extension tsm_system_rows;
create extension hstore;
comment on extension hstore is 'pairs';

-- Types
create type mood as enum ('sad', 'it''s', '기쁨');
alter type mood add value 'in between' after 'sad';
create type "Pair" as ("First" integer, second text collate "C");
alter type "Pair" add attribute third numeric(10, 2);
create type nested as (pairs "Pair"[], mood mood);
create domain positive as numeric(12, 3) default 1 not null constraint "is positive" check (value > 0);
create domain mail as other.citext check (value ~ '@');
create domain pair_domain as "Pair" check ((value).second <> '');
create domain number_list as integer[] check (array_length(value, 1) < 100);
create function float_difference(float8, float8) returns float8 language sql immutable strict as 'select $1 - $2';
create type span as range (subtype = float8, subtype_diff = float_difference, multirange_type_name = "span set");
create type text_span as range (subtype = text, collation = "C");
create type shell;
-- A base type of its own
create type tiny;
create function tiny_in(cstring) returns tiny language internal immutable strict as 'int4in';
create function tiny_out(tiny) returns cstring language internal immutable strict as 'int4out';
create function tiny_recv(internal) returns tiny language internal immutable strict as 'int4recv';
create function tiny_send(tiny) returns bytea language internal immutable strict as 'int4send';
create type tiny (input = tiny_in, output = tiny_out, receive = tiny_recv, send = tiny_send, like = integer, category = 'N', preferred = false,
    default = '7', delimiter = ';', collatable = false);
create table every_type (
    a_bigint bigint, a_bigserial bigserial, a_bit bit(3), a_varbit bit varying(5), a_boolean boolean, a_box box, a_bytea bytea, a_char "char",
    a_bpchar character(4), a_varchar varchar(7), a_cidr cidr, a_circle circle, a_date date, a_float4 real, a_float8 double precision, a_inet inet,
    a_integer integer, a_interval interval day to second(3), a_json json, a_jsonb jsonb, a_jsonpath jsonpath, a_line line, a_lseg lseg,
    a_macaddr macaddr, a_macaddr8 macaddr8, a_money money, a_name name, a_numeric numeric(20, 5), a_negative_scale numeric(3, -2), a_oid oid,
    a_path path, a_lsn pg_lsn, a_snapshot pg_snapshot, a_point point, a_polygon polygon, a_smallint smallint, a_text text, a_time time(2),
    a_timetz timetz, a_timestamp timestamp(0), a_timestamptz timestamptz, a_tsquery tsquery, a_tsvector tsvector, a_uuid uuid, a_xml xml,
    a_xid xid, a_xid8 xid8, a_cid cid, a_tid tid, a_refcursor refcursor,
    a_regclass regclass, a_regcollation regcollation, a_regconfig regconfig, a_regdictionary regdictionary, a_regnamespace regnamespace,
    a_regoper regoper, a_regoperator regoperator, a_regproc regproc, a_regprocedure regprocedure, a_regrole regrole, a_regtype regtype,
    a_int4range int4range, a_int8range int8range, a_numrange numrange, a_tsrange tsrange, a_tstzrange tstzrange, a_daterange daterange,
    a_int4multirange int4multirange, a_int8multirange int8multirange, a_nummultirange nummultirange, a_tsmultirange tsmultirange,
    a_tstzmultirange tstzmultirange, a_datemultirange datemultirange,
    a_span span, a_span_set "span set", a_text_span text_span, a_mood mood, a_pair "Pair", a_nested nested, a_positive positive, a_mail mail,
    a_pair_domain pair_domain, a_number_list number_list, a_tiny tiny, a_citext other.citext, a_hstore hstore
);
insert into every_type values (
    -9223372036854775808, 3, b'101', b'10101', true, '(1,1),(0,0)', '\x00ff', 'c', 'ab', 'varchar', '10.0.0.0/8', '<(1,2),3>', '2026-02-28', 0.1, 0.2,
    '10.1.2.3/8', 42, '3 days 04:05:06.789', '{"a" : 1}', '{"a": [1, {"b": null}]}', '$.a[*] ? (@.b > 1)', '{1,2,3}', '[(0,0),(1,1)]',
    '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '-12.34', 'a name', 12345.67890, 12300, 4294967295, '((0,0),(1,1))', '16/B374D848',
    '10:20:10,14,15', '(1,2)', '((0,0),(1,1),(1,0))', -32768, E'a\ttext\n\\.', '04:05:06.78', '04:05:06+09', '2026-02-28 04:05:06',
    '2026-02-28 04:05:06+09', 'fat & (rat | !cat)', 'a:1A fat:2B', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '<a>b</a>', '5', '6', '7', '(1,2)', 'cursor',
    'pg_class', '"C"', 'english', 'simple', 'pg_catalog', '|/', '+(integer,integer)', 'int4in', 'abs(integer)', 'postgres', 'integer[]',
    '[1,5)', '[1,5)', '(1.5,)', '[2026-01-01,2026-01-02)', '[2026-01-01 00:00+00,)', '[2026-01-01,2026-02-01)',
    '{[1,3),[5,7)}', '{}', '{(,1.5],[2,3]}', '{[2026-01-01,2026-01-02)}', '{}', '{[2026-01-01,2026-02-01)}',
    '[1,2]', '{[1,2],[3,4]}', '["a","b c")', 'it''s', row(1, 'a"b', 3.14), row(array[row(1, 'x', 2)::"Pair"], '기쁨'), 1.5, 'a@b', row(1, 'x', 2), '{1,2}', '11',
    'Straße', 'a=>1, b=>NULL');
insert into every_type (a_positive) values (2);
create table every_array as
select array[a_bit] bits, array[[a_text, null], ['', a_text]] texts, array[a_jsonb] jsons, array[a_box, a_box] boxes, array[a_mood, null] moods,
    array[a_pair] pairs, array[a_interval] intervals, array[a_int4range] ranges, array[a_int4multirange] multiranges, array[a_positive] positives,
    array[a_numeric] numerics, array[a_xml] xmls, array[a_uuid] uuids, array[a_tiny] tinies, '[-1:1]={1,2,3}'::integer[] bounds
from every_type where a_bigint is not null;
create table of_type of "Pair" (primary key ("First"), second with options default 'x');
insert into of_type values (1, 'a', 2);

-- Functions, procedures, aggregates
create function defaults(a integer, b text default 'it''s', variadic c numeric[] default array[1, 2]::numeric[]) returns text
    language sql immutable parallel safe leakproof cost 10 as 'select a || b || array_to_string(c, '','')';
create function "out put"(in a integer, out b integer, inout c text) language plpgsql stable security definer
    set search_path = pg_catalog, "wide ""1""" set work_mem = '8MB' as $f$ begin b := a; end $f$;
create function table_function(n integer) returns table (i integer, "Square" integer) language sql rows 10 strict
    as 'select i, i * i from generate_series(1, n) as i';
create function set_function() returns setof "Pair" language sql begin atomic select 1, 'a'::text, 2.0::numeric(10, 2); end;
create function body(a integer) returns integer language sql return a + (select count(*)::integer from every_type);
create function polymorphic(a anycompatible, b anycompatiblearray) returns anycompatible language sql as 'select a';
create function supported(integer) returns integer language sql immutable as 'select $1';
create procedure "do"(inout a integer, b text default null) language plpgsql as $p$ begin a := a + 1; commit; end $p$;
create procedure atomic_insert(a text) begin atomic insert into every_type (a_text, a_positive) values (a, 1); end;
create function trigger_function() returns trigger language plpgsql as $t$ begin return coalesce(new, old); end $t$;
create function transition_function() returns trigger language plpgsql as $t$ begin perform count(*) from new_rows; return null; end $t$;
create function my_row_number() returns bigint language internal window immutable as 'window_row_number';
create aggregate total(numeric) (sfunc = numeric_add, stype = numeric, initcond = '0', combinefunc = numeric_add, parallel = safe,
    msfunc = numeric_add, minvfunc = numeric_sub, mstype = numeric, minitcond = '0');
create aggregate least_of(integer) (sfunc = int4smaller, stype = integer, sortop = operator(pg_catalog.<));
create aggregate my_percentile(float8 order by anyelement) (sfunc = ordered_set_transition, stype = internal, finalfunc = percentile_disc_final,
    finalfunc_extra, finalfunc_modify = read_write);
create aggregate my_rank(variadic "any" order by variadic "any") (sfunc = ordered_set_transition_multi, stype = internal, finalfunc = rank_final,
    finalfunc_extra, hypothetical);
create aggregate counted(*) (sfunc = int8inc, stype = int8, initcond = '0');

-- Operators, their classes and families, access methods, casts, conversions, languages, transforms
create function tiny_less(tiny, tiny) returns boolean language internal immutable strict as 'int4lt';
create function tiny_equal(tiny, tiny) returns boolean language internal immutable strict as 'int4eq';
create function tiny_compare(tiny, tiny) returns integer language internal immutable strict as 'btint4cmp';
create function tiny_negate(tiny) returns tiny language internal immutable strict as 'int4um';
create operator <% (leftarg = tiny, rightarg = tiny, function = tiny_less, commutator = >%, restrict = scalarltsel, join = scalarltjoinsel);
create operator ==% (leftarg = tiny, rightarg = tiny, function = tiny_equal, commutator = ==%, restrict = eqsel, join = eqjoinsel, hashes, merges);
create operator !!% (rightarg = tiny, function = tiny_negate);
create operator family tiny_family using btree;
create operator class tiny_ops default for type tiny using btree family tiny_family as
    operator 1 <%, operator 3 ==%, function 1 tiny_compare(tiny, tiny);
alter operator family tiny_family using btree add function 2 (tiny, tiny) btint4sortsupport(internal);
create operator class tiny_brin_ops for type tiny using gin as operator 1 <%, function 1 tiny_compare(tiny, tiny), storage tiny;
create access method "my heap" type table handler heap_tableam_handler;
create access method "gist 2" type index handler gisthandler;
create operator class box_ops_2 default for type box using "gist 2" as
    operator 1 <<, operator 2 &<, operator 3 &&, operator 4 &>, operator 5 >>, operator 6 ~=, operator 7 @>, operator 8 <@, operator 9 &<|,
    operator 10 <<|, operator 11 |>>, operator 12 |&>, function 1 gist_box_consistent(internal, box, smallint, oid, internal),
    function 2 gist_box_union(internal, internal), function 5 gist_box_penalty(internal, internal, internal),
    function 6 gist_box_picksplit(internal, internal), function 7 gist_box_same(box, box, internal);
create function pair_to_text("Pair") returns text language sql immutable as 'select $1.second';
create cast ("Pair" as text) with function pair_to_text("Pair") as assignment;
create cast (mood as integer) with inout;
create cast (tiny as integer) without function as implicit;
create conversion "my conversion" for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
create default conversion other.standard for 'LATIN2' to 'UTF8' from iso8859_to_utf8;
create function my_call_handler() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler';
create function my_inline_handler(internal) returns void language c strict as '$libdir/plpgsql', 'plpgsql_inline_handler';
create function my_validator(oid) returns void language c strict as '$libdir/plpgsql', 'plpgsql_validator';
create trusted language my_language handler my_call_handler inline my_inline_handler validator my_validator;
create function in_my_language() returns integer language my_language as 'begin return 1; end';
create function from_tiny(internal) returns internal language internal immutable strict as 'jsonb_typeof';
create transform for tiny language my_language (from sql with function from_tiny(internal));
create function transformed(tiny) returns integer language my_language transform for type tiny as 'begin return 1; end';

-- Text search
create text search parser my_parser (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype, headline = prsd_headline);
create text search template my_template (init = dsimple_init, lexize = dsimple_lexize);
create text search dictionary my_dictionary (template = my_template, stopwords = english, accept = false);
create text search configuration "My Configuration" (parser = my_parser);
alter text search configuration "My Configuration" add mapping for asciiword, word with my_dictionary, english_stem;

-- Collations and statistics
create collation "in German" (provider = icu, locale = 'de-u-co-phonebk', deterministic = false);
create collation posix_copy from "POSIX";
create table measured (a integer, b integer, c text collate "in German");
create statistics measured_all on a, b from measured;
create statistics other.some_kinds (ndistinct, mcv) on a, b from measured;
create statistics of_expression on (a + b) from measured;
alter statistics measured_all set statistics 500;

-- Tables and all that hangs on them
create table customers (
    id integer generated by default as identity (sequence name "customers id" start 100 increment 2 cache 5),
    name text not null constraint "not empty" check (name <> '') no inherit,
    email mail unique nulls not distinct,
    born date default current_date - 1,
    age_group text generated always as (case when born is null then 'none' else 'some' end) stored,
    "large text" text compression pglz collate "C",
    constraint "customers key" primary key (id) include (name) with (fillfactor = 80)
) with (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_enabled = false, user_catalog_table = true);
alter table customers alter column "large text" set storage external, alter column name set statistics 1000, alter column name set (n_distinct = -0.5), replica identity using index "customers key";
insert into customers (name, email, "large text") values ('가', 'A@b.c', repeat('x', 10000)), ('b', null, null);
create table orders (
    id bigint primary key, customer integer not null, parent bigint, amount positive, at timestamptz not null default '2026-01-01', mood mood default 'sad',
    constraint "to customer" foreign key (customer) references customers on delete cascade on update restrict deferrable initially deferred,
    constraint "to itself" foreign key (parent) references orders match full on delete set null (parent),
    constraint "one at a time" unique (customer, at) deferrable,
    constraint "apart" exclude using gist (customer with =, tstzrange(at, null) with &&) where (amount > 10)
);
insert into orders values (1, 100, null, 5, default, default), (2, 102, 1, 20, '2026-02-01', '기쁨');
alter table orders add constraint later foreign key (parent) references orders not valid, add constraint "checked later" check (amount < 5) not valid;
alter table orders cluster on orders_pkey;
create index "by day" on orders (date_trunc('day', at at time zone 'UTC') desc nulls last, (customer + 1)) include (amount)
    with (fillfactor = 60, deduplicate_items = off) where amount > 0;
create index trigrams on customers using gist ("large text" gist_trgm_ops (siglen = 32));
create index documents on every_type using gin (a_jsonb jsonb_path_ops, a_tsvector) with (fastupdate = off);
create index pages on every_type using brin (a_integer int4_minmax_multi_ops (values_per_range = 16)) with (pages_per_range = 8);
create index points on every_type using spgist (a_point kd_point_ops);
create index hashed on every_type using hash (a_text);
create index blooming on every_type using bloom (a_integer, a_text) with (length = 80, col1 = 2);
create index "own method" on every_type using "gist 2" (a_box);
create unique index on customers (lower(name) text_pattern_ops, email);
alter index "by day" alter column 2 set statistics 100;
alter index hashed depends on extension hstore;
create table other_method (a integer) using "my heap";
insert into other_method values (1);
create unlogged table not_logged (id serial, a integer);
insert into not_logged (a) values (1);
create table no_columns ();
insert into no_columns default values;
create table dropped (a integer, b integer, c integer default 3);
insert into dropped values (1, 2);
alter table dropped drop column b, add column d integer default 4;

-- Inheritance and partitions
create table ancestor (a integer not null, b text default 'b', constraint inherited check (a > 0));
create table other_ancestor (b text, c integer);
create table heir (d integer, a integer default 9) inherits (ancestor, other_ancestor);
create table late_heir (b text, c integer);
alter table late_heir inherit other_ancestor;
insert into ancestor values (1); insert into heir values (2, 'x', 3, 4);
create table by_range (id integer, at date, kind text, primary key (id, at, kind)) partition by range (at);
create table by_range_1 partition of by_range for values from (minvalue) to ('2026-01-01') with (fillfactor = 50);
create table by_range_2 partition of by_range (kind default 'sub') for values from ('2026-01-01') to ('2027-01-01') partition by list (kind);
create table by_range_2_a partition of by_range_2 for values in ('a') partition by hash (id, at);
create table by_range_2_a_0 partition of by_range_2_a for values with (modulus 2, remainder 0);
create table by_range_2_a_1 (kind text not null, at date not null, id integer not null);
alter table by_range_2_a attach partition by_range_2_a_1 for values with (modulus 2, remainder 1);
create table by_range_2_rest partition of by_range_2 default;
create table "by range rest" partition of by_range default;
create index "over all" on by_range (kind);
create index not_yet on only by_range (at);
create table points_to_partitions (id integer, at date, kind text, foreign key (id, at, kind) references by_range);
create table by_expression (v text) partition by list (lower(v));
create table by_expression_1 partition of by_expression for values in ('a', null);
insert into by_range select i, '2025-06-01'::date + i * 20, (array['a', 'B', 'sub'])[1 + i % 3] from generate_series(1, 40) as i;
insert into points_to_partitions values (3, '2025-06-01'::date + 60, 'a');
insert into by_expression values ('A'), (null);
create table by_key (a integer, b text collate "C") partition by range (a, b collate "C" text_pattern_ops);
create table by_key_1 partition of by_key for values from (1, minvalue) to (10, 'x');

-- Sequences
create sequence small as smallint increment -3 minvalue -30 maxvalue 100 start 10 cache 3 cycle owned by other_method.a;
select nextval('small'), nextval('small');
create unlogged sequence not_logged_sequence;

-- Views and rules
create view plain_view ("Column 1", b) as select c.name, o.amount from customers c left join orders o on o.customer = c.id where c.id > 0;
create view guarded with (security_barrier, security_invoker = true) as select * from customers c where c.name <> '' with local check option;
create view checked as select o.id, o.mood from orders o where o.id > 0 with cascaded check option;
alter view checked alter column mood set default 'in between';
create recursive view numbers (n) as values (1) union all select n + 1 from numbers where n < 5;
create view first_of_two as select null::integer as id, null::text as v;
create view second_of_two as select f.id, f.v from first_of_two f;
create or replace view first_of_two as select s.id, s.v from second_of_two s where false;
create view by_group as select c.id, c.name, count(*) from customers c group by c.id;
create materialized view filled using "my heap" with (fillfactor = 90) as select c.id, c.name from customers c;
create unique index on filled (id);
create materialized view not_filled as select f.id from filled f with no data;
create rule "no ""delete""" as on delete to orders where old.id = 1 do instead nothing;
create rule instead_insert as on insert to plain_view do instead insert into customers (name) values (new."Column 1") returning name, null::positive;
create rule also as on update to orders do also (select 1; notify changed);
alter table orders disable rule "no ""delete""";

-- Triggers
create trigger "before it" before insert or update of amount, mood on orders for each row when (new.amount > 1) execute function trigger_function('a', 'it''s');
create constraint trigger constrained after insert or delete on orders from customers deferrable initially deferred for each row
    execute function trigger_function();
create trigger with_transition after insert on orders referencing new table as new_rows for each statement execute function transition_function();
create trigger truncated before truncate on orders execute function trigger_function();
create trigger on_view instead of update on checked for each row execute function trigger_function();
create trigger on_partitions after insert on by_range for each row execute function trigger_function();
alter table orders disable trigger "before it", enable always trigger truncated, enable replica trigger with_transition;
alter table by_range_1 disable trigger on_partitions;
create function event_function() returns event_trigger language plpgsql as 'begin end';
create event trigger "on ddl" on ddl_command_end when tag in ('CREATE SEQUENCE', 'DROP TABLE') execute function event_function();
create event trigger on_drop on sql_drop execute function event_function();
alter event trigger on_drop disable;

-- Foreign data
create foreign data wrapper my_wrapper handler postgres_fdw_handler validator postgres_fdw_validator;
create foreign data wrapper dummy no handler no validator options (debug 'it''s');
create server "remote ""1""" type 'kind' version '1.0' foreign data wrapper dummy options (host 'db', "Port" '5432');
create server files foreign data wrapper file_fdw;
create user mapping for wide_mapped server "remote ""1""" options ("user" 'it''s', secret 'x');
create user mapping for public server "remote ""1""";
create foreign table far_away (a integer options (column_name 'A') not null, b text default 'x', check (a > 0)) server "remote ""1""" options (table 't');
create foreign table far_partition partition of by_key for values from (20, minvalue) to (30, maxvalue) server files options (filename '/nonexistent');

-- Publications and subscriptions
create publication everything for all tables with (publish = 'insert, update', publish_via_partition_root = true);
create publication "some tables" for table customers (id, name), orders where (id > 5), only ancestor;
create publication one_schema for tables in schema other with (publish = 'truncate');
create subscription "to nowhere" connection 'host=nowhere.invalid dbname=x' publication everything, other
    with (connect = false, slot_name = none, binary = true, streaming = true, two_phase = false, disable_on_error = true, synchronous_commit = 'remote_apply');

-- Rights
alter table orders enable row level security, force row level security;
create policy "own rows" on orders as permissive for select to "wide owner", "wide ""user""" using (amount > 1 or current_user = 'x');
create policy restricted on orders as restrictive for all using (true) with check (amount < 1000);
create policy for_insert on orders for insert with check (mood <> 'sad');
grant usage on schema "wide ""1""" to "wide owner";
grant all on schema other to "wide ""user""" with grant option;
grant select (id, name), update (name) on customers to "wide owner" with grant option;
grant select, insert, trigger on orders to public;
revoke select on every_array from postgres;
grant execute on function defaults(integer, text, numeric[]) to "wide owner";
revoke execute on function body(integer) from public;
grant execute on procedure "do"(integer, text) to "wide owner";
grant usage on type mood, positive to "wide owner";
revoke usage on type "Pair" from public;
grant usage on language my_language to "wide owner";
revoke usage on language my_language from public;
grant usage on foreign data wrapper dummy to "wide owner";
grant usage on foreign server files to "wide owner" with grant option;
grant usage, select on sequence small to "wide owner";
alter default privileges in schema other grant select on tables to "wide owner";
alter default privileges for role "wide owner" revoke execute on functions from public;
alter default privileges in schema "wide ""1""" grant usage on types to "wide ""user""";
alter default privileges grant usage on schemas to "wide owner";
alter table measured owner to "wide owner";
alter view plain_view owner to "wide owner";
alter function defaults owner to "wide owner";
alter type mood owner to "wide owner";
alter server files owner to postgres;
set role "wide owner";
create table other.owned (a integer);
grant select on other.owned to "wide ""user""" with grant option;
reset role;

-- Large objects
select lo_from_bytea(100, decode(repeat('00ff', 10000), 'hex')), lo_from_bytea(101, ''), lo_create(4294967290);
alter large object 101 owner to "wide owner";
grant select on large object 100 to "wide ""user""" with grant option;

-- Comments
comment on access method "my heap" is 'access method';
comment on aggregate my_rank(variadic "any" order by variadic "any") is 'aggregate';
comment on cast ("Pair" as text) is 'cast';
comment on collation "in German" is 'collation';
comment on column customers.name is 'column; with "quotes" and it''s
second line';
comment on column "Pair"."First" is 'attribute';
comment on constraint "to customer" on orders is 'constraint';
comment on constraint "is positive" on domain positive is 'constraint of a domain';
comment on conversion "my conversion" is 'conversion';
comment on domain positive is 'domain';
comment on event trigger "on ddl" is 'event trigger';
comment on foreign data wrapper dummy is 'foreign data wrapper';
comment on foreign table far_away is 'foreign table';
comment on function defaults(integer, text, numeric[]) is 'function';
comment on index "by day" is 'index';
comment on language my_language is 'language';
comment on large object 100 is 'large object';
comment on materialized view filled is 'materialized view';
comment on operator <% (tiny, tiny) is 'operator';
comment on operator class tiny_ops using btree is 'operator class';
comment on operator family tiny_family using btree is 'operator family';
comment on policy "own rows" on orders is 'policy';
comment on procedure "do"(integer, text) is 'procedure';
comment on publication "some tables" is 'publication';
comment on rule also on orders is 'rule';
comment on schema "wide ""1""" is 'schema';
comment on sequence small is 'sequence';
comment on server files is 'server';
comment on statistics other.some_kinds is 'statistics';
comment on subscription "to nowhere" is 'subscription';
comment on table orders is 'table';
comment on text search configuration "My Configuration" is 'configuration';
comment on text search dictionary my_dictionary is 'dictionary';
comment on text search parser my_parser is 'parser';
comment on text search template my_template is 'template';
comment on transform for tiny language my_language is 'transform';
comment on trigger "before it" on orders is 'trigger';
comment on type mood is 'type';
comment on view plain_view is 'view';
