//! What some extensions want around a restore, as data. A new one is an entry of [`HOOKS`].
//!
//! | extension | in the dump | around the restore |
//! |---|---|---|
//! | timescaledb | its catalog and all chunks, as configuration tables and tables | must be there before, and be told when it begins and ends: else its triggers and workers see a catalog that is half there |
//! | postgis | the extension by its name, rows of `spatial_ref_sys` that somebody added | nothing, but the target has to offer it |
//! | pg_cron | the extension by its name, the jobs (`cron.job`) | nothing, but it can be made in one database of a server only |
//!
//! Invariants:
//! - Statements are run in the new database, in their order, each in a transaction of its own, by the role that restores. They mean the same
//!   whatever the search path is, and may be run again.
//! - What an extension wants is known by its name only; a version that wants something else has to be told apart by its statements.

use crate::facts::Extension;

/// What one extension wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtensionHooks {
    /// As `pg_extension` names it.
    pub name: &'static str,
    /// Statements to run in the new, empty database, before pg_restore.
    pub before_restore: &'static [&'static str],
    /// Statements to run when pg_restore has succeeded, before anybody uses the database.
    pub after_restore: &'static [&'static str],
    /// What a person should know who restores a database with it; a sentence or two.
    pub note: &'static str,
}

/// All of them.
pub const HOOKS: &[ExtensionHooks] = &[
    ExtensionHooks {
        name: "timescaledb",
        before_restore: &[
            "create extension if not exists timescaledb with schema public",
            "do $$ begin execute format('select %s.timescaledb_pre_restore()', (select extnamespace::pg_catalog.regnamespace \
             from pg_catalog.pg_extension where extname = 'timescaledb')); end $$",
        ],
        after_restore: &[
            "do $$ begin execute format('select %s.timescaledb_post_restore()', (select extnamespace::pg_catalog.regnamespace \
             from pg_catalog.pg_extension where extname = 'timescaledb')); end $$",
        ],
        note: "TimescaleDB's catalog is restored as it was, so the target's default version of the extension has to be the source's, and \
               its library be in shared_preload_libraries. An extension in another schema than public has to be made there by hand.",
    },
    ExtensionHooks {
        name: "postgis",
        before_restore: &[],
        after_restore: &[],
        note: "The target has to offer PostGIS of the source's version or a newer one. After a restore to a newer one: \
               SELECT postgis_extensions_upgrade();",
    },
    ExtensionHooks {
        name: "pg_cron",
        before_restore: &[],
        after_restore: &[],
        note: "pg_cron can be created in the database that the target's setting cron.database_name names, and in no other, so a restore \
               under another name fails at it. Its jobs are in the dump, with the names of the database and of the roles that they run as.",
    },
];

/// What these extensions want, in the order of [`HOOKS`]. Extensions that want nothing are not in it.
pub fn hooks(extensions: &[Extension]) -> Vec<&'static ExtensionHooks> {
    let has = |hook: &&ExtensionHooks| extensions.iter().any(|extension| extension.name == hook.name);
    HOOKS.iter().filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extensions(names: &[&str]) -> Vec<Extension> {
        names.iter().map(|name| Extension { name: (*name).to_owned(), version: "2.17.2".to_owned() }).collect()
    }

    #[test]
    fn hooks_are_those_of_the_extensions_that_are_there() {
        assert!(hooks(&extensions(&["plpgsql", "citext"])).is_empty());
        let found = hooks(&extensions(&["plpgsql", "postgis", "timescaledb", "timescaledb_toolkit"]));
        assert_eq!(found.iter().map(|hook| hook.name).collect::<Vec<_>>(), ["timescaledb", "postgis"]);
        let timescale = found[0];
        assert!(timescale.before_restore[0].starts_with("create extension if not exists timescaledb"));
        assert!(timescale.before_restore[1].contains("timescaledb_pre_restore()"));
        assert!(timescale.after_restore[0].contains("timescaledb_post_restore()"));
        assert!(found[1].before_restore.is_empty() && found[1].after_restore.is_empty());
    }

    /// Who begins something ends it, and everybody has something to say.
    #[test]
    fn the_table_is_sound() {
        for (index, hook) in HOOKS.iter().enumerate() {
            assert!(HOOKS[..index].iter().all(|other| other.name != hook.name), "{} is there twice", hook.name);
            assert_eq!(hook.before_restore.is_empty(), hook.after_restore.is_empty(), "{}", hook.name);
            assert!(hook.note.ends_with(['.', ';']) && !hook.note.contains("  "), "{}", hook.note);
        }
    }
}
