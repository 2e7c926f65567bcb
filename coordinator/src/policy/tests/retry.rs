//! `[retry]`: pauses between attempts.

use jiff::SignedDuration;

use super::{Random, policy, seeds};
use crate::policy::{self, Retry};

const EVERY_DAY: &str = "every = \"day\"\nat = [\"02:00\"]";

fn with(retry: &str) -> Result<Retry, String> {
    // A table of its own behind the schedule's keys.
    let text = format!(
        "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\n{EVERY_DAY}\n{retry}\n[[rule]]\nname = \"Default\"\nvault = \"P7D\"\n"
    );
    policy::parse(&text).map(|document| document.retry).map_err(|problem| problem.message)
}

#[test]
fn what_is_left_out_is_the_default_and_faults_are_told_together() {
    assert_eq!(policy("UTC", EVERY_DAY).retry, Retry::default());
    assert_eq!(with("[retry]"), Ok(Retry::default()));
    let all = with("[retry]\nattempts = 5\nwait = \"PT10S\"\nlongest_wait = \"PT40S\"").expect("valid");
    assert_eq!(
        all,
        Retry { attempts: 5, wait: SignedDuration::from_secs(10), longest_wait: SignedDuration::from_secs(40) }
    );
    // A wait above the default's longest one is its own longest one.
    let long = with("[retry]\nwait = \"PT3H\"").expect("valid");
    assert_eq!(long.longest_wait, SignedDuration::from_hours(3));
    let faults = with("[retry]\nattempts = 0\nwait = \"PT0S\"\nlongest_wait = \"P2D\"").expect_err("refused");
    for fault in ["attempts 0", "wait", "longest_wait"] {
        assert!(faults.contains(&format!("retry: {fault}")), "{fault}: {faults}");
    }
    let shorter = with("[retry]\nwait = \"PT10M\"\nlongest_wait = \"PT5M\"").expect_err("refused");
    assert!(shorter.contains("longest_wait must not be shorter than wait"), "{shorter}");
    assert!(with("[retry]\ntries = 3").is_err(), "an unknown key");
}

#[test]
fn pauses_double_up_to_the_longest_and_are_moved_by_a_fifth_at_most() {
    for seed in seeds(200, 5000) {
        let mut random = Random::new(seed);
        let wait = SignedDuration::from_secs(1 + i64::try_from(random.below(7200)).expect("fits"));
        let longest_wait = wait + SignedDuration::from_secs(i64::try_from(random.below(80_000)).expect("fits"));
        let retry = Retry { attempts: 10, wait, longest_wait };
        let key = format!("{seed:032x}");
        let mut whole = wait;
        for attempt in 2..=40_u32 {
            let pause = retry.pause(attempt, &key);
            assert_eq!(pause, retry.pause(attempt, &key), "seed {seed}: the same again");
            let (low, high) = (whole.as_millis() * 8 / 10, whole.as_millis() * 12 / 10);
            assert!((low..=high).contains(&pause.as_millis()), "seed {seed}, attempt {attempt}: {pause} of {whole}");
            whole = (whole * 2).min(longest_wait);
        }
    }
    // A fleet that failed in one second is spread.
    let retry = Retry::default();
    let pauses: std::collections::BTreeSet<_> = (0..1000).map(|n| retry.pause(2, &format!("{n:032x}"))).collect();
    assert!(pauses.len() > 300, "{}", pauses.len());
    let (first, last) = (pauses.first().expect("some"), pauses.last().expect("some"));
    assert!(first.as_secs() < 250 && last.as_secs() > 350, "{first} to {last}");
}
