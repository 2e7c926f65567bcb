//! Databases to back up.

use crate::postgres::Server;

/// Everything awkward (`sample/awkward.sql`), and a table of `megabytes` MB of random bytes. Makes the database; its roles belong to the
/// server and are made when missing.
#[track_caller]
pub fn awkward(server: &Server, database: &str, megabytes: u32) {
    server.create_database(database);
    server.psql(database, include_str!("sample/awkward.sql"));
    add_random(server, database, "bulk", megabytes);
}

/// A database with nothing but a table `bulk` of `megabytes` MB of random bytes. pg_dump writes two digits for each byte.
#[track_caller]
pub fn random(server: &Server, database: &str, megabytes: u32) {
    server.create_database(database);
    server.psql(database, "create extension pgcrypto");
    add_random(server, database, "bulk", megabytes);
}

/// A table of `megabytes` MB of random bytes in rows of 4 KiB, which PostgreSQL does not compress.
#[track_caller]
pub fn add_random(server: &Server, database: &str, table: &str, megabytes: u32) {
    let rows = u64::from(megabytes) * 256;
    server.psql(
        database,
        &format!(
            "begin;
             create table {table} (id bigint primary key, content bytea not null);
             alter table {table} alter content set storage external;
             insert into {table} select i, gen_random_bytes(1024) || gen_random_bytes(1024) || gen_random_bytes(1024) || gen_random_bytes(1024)
             from generate_series(1, {rows}) as i;
             commit;"
        ),
    );
}
