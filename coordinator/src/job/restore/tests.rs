use std::collections::BTreeMap;

use super::*;
use crate::catalog::{Credential, RestoreOptions};
use crate::job::new_job;
use crate::lifecycle::tests::world_with;
use crate::plugin::hanging;

#[tokio::test]
async fn a_clean_up_that_hangs_is_given_up_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world_with(dir.path(), BTreeMap::from([("postgres".to_owned(), hanging::command())])).await;
    let shop = jobs.shared.catalog.instance("shop").await.expect("find").expect("there");
    let work = Work::RestoreDatabase {
        point_id: Id::of(b"p"),
        target_uri: "postgres://u@h/".to_owned(),
        database: "shop2".to_owned(),
        no_owner: false,
        credential: Credential::None,
        options: RestoreOptions::default(),
    };
    let job = new_job(&shop, work, None, false);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let problem = clean_up(&jobs, &job, &CancellationToken::new()).await.expect_err("nobody answers");
    assert_eq!((problem.reason, begun.elapsed().as_secs()), (Reason::PluginTimeout, CLEAN_UP_LIMIT.as_secs()));
    assert!(problem.message.contains("600s"), "{}", problem.message);
}
