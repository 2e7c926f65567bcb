//! Backups, prunes, deletions and undeletions side by side, in every order that a seed gives.

use std::collections::BTreeMap;

use super::*;

/// A prune that sleeps while others work deletes nothing that a point needs, and two at once do not disturb each other; backups, deletions
/// and undeletions beside them; somebody killed at any turn. Real code, in orders that a seed gives.
#[tokio::test]
async fn any_order_of_calls_leaves_every_point_whole() {
    let seeds = if vaultferry_tests::heavy() { 0..2000 } else { 0..60_u64 };
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in seeds {
        interleave(seed, &mut outcomes).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    vaultferry_tests::measured(&format!("{outcomes:?}"));
    for outcome in ["committed", "refused", "pruned", "undeleted", "too late to undelete"] {
        assert!(outcomes.get(outcome).is_some_and(|count| *count > 0), "{outcome} never happened: {outcomes:?}");
    }
}

async fn interleave(seed: u64, outcomes: &mut BTreeMap<&'static str, u32>) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let memory: store::Shared = Arc::new(Memory::new("memory"));
    let first = repository(&memory).await;
    let told = |error: Error| error.to_string();
    let old = back_up(&first, "old", &[1, 2]).await.map_err(told)?;
    let bin = back_up(&first, "bin", &[3]).await.map_err(told)?;
    back_up(&first, "kept", &[4]).await.map_err(told)?;
    stage(&first, &[5]).await.map_err(told)?;
    delete(&memory, &old).await;
    delete(&memory, &bin).await;
    if random.random_bool(0.3) {
        points::hold(&*memory, &bin, "", &never()).await.map_err(told)?;
    }
    // Begin in any state of the marks.
    for _ in 0..random.random_range(0..3) {
        run(&first).await.map_err(told)?;
    }
    let scheduler = Arc::new(Scheduler::default());
    let mut tasks: tokio::task::JoinSet<Vec<(&'static str, Option<String>)>> = tokio::task::JoinSet::new();
    // Two backups, one of what was there and one of more; two prunes at once, of one or two runs.
    for (job, streams) in [("a", vec![1, 2, 5]), ("b", vec![1, 3, 6])] {
        let actor = scheduler.actor(memory.clone());
        tasks.spawn(async move {
            let store: store::Shared = actor.clone();
            let mut told = Vec::new();
            for _ in 0..2 {
                let done = async { back_up(&open(&store).await?, job, &streams).await };
                match done.await {
                    Ok(_) => {
                        told.push(("committed", None));
                        break;
                    }
                    // Missing: a prune went on while it was verified. Its job fails, as it should.
                    Err(Error::PrunedMeanwhile { .. } | Error::StagedIncomplete { .. }) => told.push(("refused", None)),
                    Err(error) => told.push(("broken", Some(format!("backup {job}: {error}")))),
                }
            }
            actor.end();
            told
        });
    }
    for prunes in [random.random_range(1..3), random.random_range(1..4)] {
        let actor = scheduler.actor(memory.clone());
        tasks.spawn(async move {
            let store: store::Shared = actor.clone();
            let mut told = Vec::new();
            for _ in 0..prunes {
                let done = async { run(&*open(&store).await?).await };
                told.push(match done.await {
                    Ok(_) => ("pruned", None),
                    Err(Error::MaintenanceBusy { .. }) => ("busy", None),
                    Err(error) => ("broken", Some(format!("prune: {error}"))),
                });
            }
            actor.end();
            told
        });
    }
    let actor = scheduler.actor(memory.clone());
    tasks.spawn(async move {
        let undeleted = points::undelete(&*actor, &bin, &never()).await;
        actor.end();
        vec![match undeleted {
            Ok(()) => ("undeleted", None),
            Err(Error::PointNotFound { .. }) => ("too late to undelete", None),
            Err(error) => ("broken", Some(format!("undelete: {error}"))),
        }]
    });
    let kill = random.random_bool(0.5).then(|| (random.random_range(0..5), random.random_range(0..60)));
    let run_all = scheduler.run(seed, kill);
    tokio::time::timeout(Duration::from_secs(60), run_all).await.map_err(|_| "nobody moves".to_owned())?;
    // The dead do not come back; the others have come to their ends.
    tokio::task::yield_now().await;
    if kill.is_some() {
        tasks.abort_all();
    }
    while let Some(done) = tasks.join_next().await {
        let Ok(told) = done else { continue };
        for (outcome, error) in told {
            *outcomes.entry(outcome).or_default() += 1;
            if let Some(error) = error {
                return Err(error);
            }
        }
    }
    read_everything(&memory).await?;
    let after = open(&memory).await.map_err(told)?;
    for round in 0..3 {
        run(&after).await.map_err(|error| format!("prune {round} afterwards: {error}"))?;
        read_everything(&memory).await?;
    }
    back_up(&after, "after", &[1, 2, 3, 4, 5, 6]).await.map_err(|error| format!("backup afterwards: {error}"))?;
    read_everything(&memory).await?;
    Ok(())
}
