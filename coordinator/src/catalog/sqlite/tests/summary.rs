//! The figures of each instance.

use super::*;

fn time(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a time")
}

#[tokio::test]
async fn the_oldest_good_point_comes_first_and_every_figure_is_the_instance_s_own() {
    let (_dir, catalog) = open();
    let since = time(0);
    let before = Box::default();
    let protections = [
        ("fresh", Protection::Active),
        ("old", Protection::Paused { since }),
        ("new", Protection::Active),
        ("stopped", Protection::Stopped { since }),
        ("deleted", Protection::Deleted { since, purge_time: since, before }),
    ];
    for (name, protection) in protections {
        catalog.insert_instances(vec![Instance { protection, ..instance(name) }]).await.expect("insert");
    }
    let of = |name: &str, number: u8, second: i64, standing: Standing| Point {
        instance_id: instance(name).id,
        stored_bytes: u64::from(number),
        standing,
        ..point(number, second)
    };
    let proven = || Standing { proven_time: Some(time(999)), ..Standing::default() };
    let gone = |standing: Standing| Standing { purge_time: Some(time(9999)), ..standing };
    let points = vec![
        of("old", 1, 10, proven()),
        of("old", 2, 20, Standing::default()),
        of("new", 3, 30, proven()),
        of("new", 4, 40, proven()),
        of("new", 5, 50, Standing::default()),
        // Deleted ones store, and are neither good nor proven.
        of("new", 6, 60, gone(proven())),
        of("stopped", 7, 5, Standing::default()),
        of("deleted", 8, 80, gone(Standing::default())),
    ];
    catalog.insert_points(points).await.expect("points");
    let all = catalog.instance_figures(time(30), 0, 100).await.expect("figures");
    let figures: Vec<_> = all
        .iter()
        .map(|of| {
            let second = |at: Option<jiff::Timestamp>| at.map_or(-1, jiff::Timestamp::as_second);
            let bytes = (of.stored_bytes, of.stored_bytes_since);
            (of.instance.name.as_str(), second(of.last_good), second(of.last_proven), of.points, bytes)
        })
        .collect();
    let expected = [
        ("fresh", -1, -1, 0, (0, 0)),
        ("old", 20, 10, 2, (3, 0)),
        ("new", 50, 40, 3, (18, 18)),
        ("stopped", 5, -1, 1, (7, 0)),
    ];
    assert_eq!(figures, expected);
    for offset in 0..5 {
        let page = catalog.instance_figures(time(30), offset, 2).await.expect("figures");
        let from = (offset as usize).min(all.len());
        assert_eq!(page, all[from..(from + 2).min(all.len())], "from {offset}");
    }
    assert_eq!(catalog.stored_since(time(50)).await.expect("bytes"), 5 + 6 + 8);
}

/// No figure reads the rows of points: with a million of them that would take minutes on a slow disk.
#[tokio::test]
async fn the_figures_are_counted_in_indexes() {
    let (_dir, catalog) = open();
    let plan = |sql: &'static str| {
        catalog.run(move |tx| {
            let mut statement = tx.prepare(&format!("explain query plan {sql}"))?;
            let lines = statement.query_map([], |row| row.get::<_, String>(3))?;
            Ok(lines.collect::<Result<Vec<_>, _>>()?)
        })
    };
    for sql in [
        "select max(time) from points p where p.instance_id = 'i' and p.deleted = 0",
        "select max(time) from points p indexed by points_proven where p.instance_id = 'i' and p.deleted = 0
         and json_extract(p.body, '$.standing.proven_time') is not null",
        "select count(*) from points p where p.instance_id = 'i' and p.deleted = 0",
        "select sum(stored_bytes) from points p where p.instance_id = 'i' and p.time >= 5",
        "select sum(stored_bytes) from points where deleted in (0, 1) and time >= 5",
    ] {
        let plan = plan(sql).await.expect("a plan");
        let in_index =
            |line: &String| line.contains("USING COVERING INDEX") || line.contains("USING INDEX points_proven");
        assert!(plan.iter().all(in_index), "{sql}: {plan:?}");
    }
}
