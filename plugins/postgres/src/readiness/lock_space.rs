//! Whether the server has room for the locks of a transaction that reads every table.
//!
//! pg_dump locks each table and each sequence, one lock each, and keeps all of them until it ends. The server has one table of locks for
//! everybody, whose promised size is `max_locks_per_transaction * (max_connections + max_prepared_transactions)`. It has some more in reserve, and others
//! need theirs: so this is a warning, and no proof that a dump fails.

use tokio_postgres::Error;
use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::Reason;

use super::Asker;
use super::managed::{Counts, Managed, Place};
use crate::connection::Session;

/// What pg_dump locks: tables and sequences, without those that an extension made, which it does not dump. And the room for them.
const SPACE: &str = "
select (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'S') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
          and not exists (select from pg_depend d
                          where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')),
       current_setting('max_locks_per_transaction')::int8,
       current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8";

/// Told when there are more of them than the server promises room for.
pub(super) async fn look(session: &Session, asker: &Asker) -> Result<Option<Finding>, Error> {
    let row = session.client().query_one(SPACE, &[]).await?;
    Ok(finding(asker.managed, &asker.host, row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// `transactions` is for how many of them `per_transaction` locks are set aside.
fn finding(managed: Managed, host: &str, needed: i64, per_transaction: i64, transactions: i64) -> Option<Finding> {
    let room = per_transaction.saturating_mul(transactions);
    if needed <= room {
        return None;
    }
    let message = format!(
        "a dump locks {needed} tables and sequences at once, and the server promises room for {room} locks \
         (max_locks_per_transaction = {per_transaction}, for {transactions} transactions)"
    );
    // Half as much again: for the other sessions, and for tables that are still to come.
    let wanted = (needed.saturating_add(needed / 2) / transactions.max(1) + 1).max(per_transaction + 1);
    let settings = [("max_locks_per_transaction", wanted.to_string())];
    let fix = managed.set(host, &settings, Place::Server, Counts::AfterARestart);
    Some(Finding::warning(Reason::TooFewLocks, message).with_fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_the_room_is_told_and_the_fix_is_enough() {
        let finding = |needed, per_transaction, transactions| {
            super::finding(Managed::Nobody, "h", needed, per_transaction, transactions)
        };
        assert_eq!(finding(0, 64, 100), None);
        assert_eq!(finding(6400, 64, 100), None);
        for (needed, per_transaction, transactions) in
            [(6401, 64, 100), (50_000, 64, 100), (11, 10, 1), (i64::MAX, 64, 3)]
        {
            let found = finding(needed, per_transaction, transactions).unwrap();
            assert!(!found.blocking && found.message.contains(&needed.to_string()), "{found:?}");
            let wanted: i64 = found.fix.rsplit([' ', ';']).nth(1).unwrap().parse().unwrap();
            assert!(wanted > per_transaction, "{found:?}");
            assert!(needed == i64::MAX || finding(needed, wanted, transactions).is_none(), "{found:?}");
        }
    }
}
