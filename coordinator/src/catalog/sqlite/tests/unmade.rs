use super::*;

#[tokio::test]
async fn instances_that_are_being_made_are_known_until_they_are_made_or_forgotten() {
    let (dir, catalog) = open();
    let all = ["a", "b", "c"].map(instance);
    catalog.begin_instances(all.to_vec()).await.expect("begun");
    drop(catalog);
    let catalog = Sqlite::open(&dir.path().join("catalog.sqlite")).expect("opens again");
    assert_eq!(catalog.unmade_instances().await.expect("unmade").len(), 3);
    assert!(catalog.instances().await.expect("instances").is_empty());
    catalog.insert_instances(vec![all[0].clone()]).await.expect("inserted");
    // All or none: what could not be inserted is still being made.
    let taken = Instance { id: "d".to_owned(), ..all[0].clone() };
    catalog.insert_instances(vec![all[1].clone(), taken]).await.expect_err("the name is taken");
    let names = |instances: Vec<Instance>| instances.into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(catalog.unmade_instances().await.expect("unmade")), ["b", "c"]);
    for _ in 0..2 {
        catalog.forget_unmade(&all[2].id).await.expect("forgotten");
    }
    assert_eq!(names(catalog.unmade_instances().await.expect("unmade")), ["b"]);
}
