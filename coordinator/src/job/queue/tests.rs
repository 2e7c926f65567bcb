use std::collections::VecDeque;

use super::*;

/// Random numbers that are the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end).expect("fits")).expect("fits")
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("VAULTFERRY_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..if number("VAULTFERRY_TEST_ALL") == Some(1) { 5000 } else { 300 },
    }
}

fn need(lane: Lane, server: Option<&str>) -> Need {
    Need { lane, server: server.map(Arc::from) }
}

/// Jobs come and end in any order; after each step the rules hold, written down here a second time and without the queue's own words.
#[test]
fn limits_hold_nobody_waits_for_nothing_and_nobody_is_overtaken_but_for_a_full_server() {
    for seed in seeds() {
        let mut random = Random(seed);
        let limits = Limits {
            jobs: 1 + random.below(5),
            jobs_per_server: 1 + random.below(3),
            maintenance_jobs: 1 + random.below(2),
        };
        let servers = ["a:5432", "b:5432", "c:5432"];
        let servers = &servers[..1 + random.below(3)];
        // Number of arrival, and need.
        let mut waiting: VecDeque<(usize, Need)> = VecDeque::new();
        let mut running: Vec<(usize, Need)> = Vec::new();
        let mut arrived = 0;
        let steps = 20 + random.below(200);
        for step in 0.. {
            let coming = step < steps;
            if !coming && waiting.is_empty() && running.is_empty() {
                break;
            }
            // Every turn of the drain ends a job, so it comes to its end, or somebody is starved.
            assert!(step < steps + arrived + 1, "seed {seed}: {waiting:?} wait for ever");
            if coming && random.below(100) < 55 {
                let lane = if random.below(4) == 0 { Lane::Maintenance } else { Lane::Jobs };
                let on_server = lane == Lane::Jobs && random.below(5) > 0;
                waiting.push_back((arrived, need(lane, on_server.then(|| servers[random.below(servers.len())]))));
                arrived += 1;
            } else if !running.is_empty() {
                let ended = random.below(running.len());
                running.swap_remove(ended);
            } else if !coming {
                panic!("seed {seed}: nothing runs, and {waiting:?} wait");
            }
            let decided = decide(waiting.iter().map(|(_, need)| need), running.iter().map(|(_, need)| need), &limits);
            assert_eq!(decided.len(), waiting.len());
            let mut left = VecDeque::new();
            let mut overtaken: Vec<Need> = Vec::new();
            for ((number, need), decision) in waiting.drain(..).zip(&decided) {
                if decision.is_ok() {
                    let count = |of: &dyn Fn(&Need) -> bool| running.iter().filter(|(_, need)| of(need)).count();
                    for before in overtaken.iter().filter(|before| before.lane == need.lane) {
                        assert_ne!(before.server, need.server, "seed {seed}: the order on a server");
                        let server = before.server.clone();
                        let full = count(&|other| other.server == server) == limits.jobs_per_server;
                        assert!(server.is_some() && full, "seed {seed}: {before:?} was overtaken by {need:?}");
                    }
                    running.push((number, need));
                } else {
                    overtaken.push(need.clone());
                    left.push_back((number, need));
                }
            }
            waiting = left;
            let of_lane = |lane: Lane| running.iter().filter(|(_, need)| need.lane == lane).count();
            let on = |server: &str| running.iter().filter(|(_, need)| need.server.as_deref() == Some(server)).count();
            assert!(of_lane(Lane::Jobs) <= limits.jobs, "seed {seed}");
            assert!(of_lane(Lane::Maintenance) <= limits.maintenance_jobs, "seed {seed}");
            assert!(servers.iter().all(|server| on(server) <= limits.jobs_per_server), "seed {seed}");
            for (_, need) in &waiting {
                let full_lane = match need.lane {
                    Lane::Jobs => of_lane(Lane::Jobs) == limits.jobs,
                    Lane::Maintenance => of_lane(Lane::Maintenance) == limits.maintenance_jobs,
                };
                let full_server = need.server.as_deref().is_some_and(|server| on(server) == limits.jobs_per_server);
                assert!(full_lane || full_server, "seed {seed}: {need:?} could run beside {running:?}");
            }
        }
    }
}

#[test]
fn what_a_job_needs() {
    let of = |uri: &str| server(uri).map(|server| server.to_string()).unwrap_or_default();
    for (uri, expected) in [
        ("postgres://db1:5432/shop", "db1:5432"),
        ("postgres://backup@DB1.example.net/shop", "db1.example.net:5432"),
        ("postgresql://u@[::1]:5433/shop", "[::1]:5433"),
        ("postgres://[::1]:5432/shop", "[::1]:5432"),
        ("postgres://u@db1:6000", "db1:6000"),
        ("postgres://%2Frun%2Fpostgresql:5432/shop", "/run/postgresql:5432"),
        ("postgres://u@/?host=/run/postgresql", "/run/postgresql:5432"),
        ("postgres://u@/shop?sslmode=require&port=6001&host=/s", "/s:6001"),
        ("postgres:///shop", ""),
        ("nothing", ""),
    ] {
        assert_eq!(of(uri), expected, "{uri}");
    }
    let backup = Work::Backup { rule: String::new(), slot: None, keep_until: None, read_bytes_per_s: None };
    let on_db1 = Need::of(&backup, "postgres://db1:5432/shop").expect("a need");
    assert_eq!((on_db1.lane, on_db1.server.as_deref()), (Lane::Jobs, Some("db1:5432")));
    assert_eq!(Need::of(&Work::ConfigureProtection, "postgres://db1:5432/shop"), None);
    let check = Need::of(&Work::Check { keyless: true, read_data_ppm: 0 }, "postgres://db1:5432/shop");
    assert_eq!(check, Some(need(Lane::Maintenance, None)));
}

/// Whether the ticket's turn has come; what it is told otherwise.
fn told(ticket: &mut Ticket) -> Option<String> {
    let mut note = None;
    let turn = ticket.turn(|wait| note = Some(wait.note()));
    let come = futures::FutureExt::now_or_never(turn).is_some();
    assert_eq!(come, note.is_none());
    note
}

#[test]
fn a_dropped_ticket_gives_its_place_to_the_next() {
    let queue = Queue::new(Limits { jobs: 2, jobs_per_server: 1, maintenance_jobs: 1 });
    let mut first = queue.enter(need(Lane::Jobs, Some("a:1")));
    let mut second = queue.enter(need(Lane::Jobs, Some("a:1")));
    let mut gone = queue.enter(need(Lane::Jobs, Some("a:1")));
    let mut third = queue.enter(need(Lane::Jobs, Some("b:1")));
    let mut fourth = queue.enter(need(Lane::Jobs, None));
    let mut check = queue.enter(need(Lane::Maintenance, None));
    let mut copy = queue.enter(need(Lane::Maintenance, None));
    assert!(told(&mut first).is_none() && told(&mut third).is_none() && told(&mut check).is_none());
    let on_a = "1 job runs on a:1, and no more may ([limits] jobs_per_server)";
    assert_eq!((told(&mut second).as_deref(), told(&mut gone).as_deref()), (Some(on_a), Some(on_a)));
    assert_eq!(told(&mut fourth).as_deref(), Some("2 jobs run, and no more may ([limits] jobs)"));
    assert_eq!(told(&mut copy).as_deref(), Some("1 maintenance job runs, and no more may ([limits] maintenance_jobs)"));
    // One that waits leaves, and one that runs.
    drop(gone);
    assert_eq!(told(&mut second).as_deref(), Some(on_a));
    drop(first);
    assert!(told(&mut second).is_none());
    assert!(told(&mut fourth).is_some() && told(&mut copy).is_some());
    drop(third);
    assert!(told(&mut fourth).is_none());
    drop(check);
    assert!(told(&mut copy).is_none());
    drop((second, fourth, copy));
    let state = queue.lock();
    assert!(state.waiting.is_empty() && state.running.is_empty());
}

#[tokio::test]
async fn who_waits_is_woken() {
    let queue = Queue::new(Limits::from(1));
    let first = queue.enter(Need::short());
    let mut second = queue.enter(Need::short());
    let waiting = tokio::spawn(async move {
        let mut waits = 0;
        second.turn(|_| waits += 1).await;
        waits
    });
    tokio::task::yield_now().await;
    drop(first);
    assert_eq!(waiting.await.expect("no panic"), 1);
}
