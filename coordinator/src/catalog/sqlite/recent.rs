//! All points of some instances, as they were read last. The agent asks for them with every look at an instance: when a backup starts, when
//! retention runs, when a policy changes. Reading them anew each time is most of what a small machine's agent does.
//!
//! Invariants:
//! - What is remembered is of a number of changes ([`crate::catalog::Catalog::point_changes`]), and counts only while that is the number.
//! - No more than [`MOST`] points are remembered; some KiB each at the most, some hundred bytes as a rule. A large fleet passes through without
//!   a use, and does no harm.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalog::Point;

/// Some MiB of them.
const MOST: usize = 4096;

/// Transactions that have changed points, by their instance's id.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<HashMap<String, u64>>);

impl Changes {
    /// One more, of each of these instances.
    pub(super) fn count(&self, instance_ids: impl IntoIterator<Item = String>) {
        let mut changes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for instance_id in instance_ids {
            *changes.entry(instance_id).or_default() += 1;
        }
    }

    /// How many there were.
    pub(super) fn of(&self, instance_id: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(instance_id).copied().unwrap_or(0)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the instance's id, with the number of changes that they are of.
    instances: HashMap<String, (u64, Arc<Vec<Point>>)>,
    points: usize,
}

impl Recent {
    /// The instance's points, if they are remembered and are of that number of changes.
    pub(super) fn get(&self, instance_id: &str, changes: u64) -> Option<Arc<Vec<Point>>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, points) = state.instances.get(instance_id)?;
        (*of == changes).then(|| points.clone())
    }

    /// Remembers the instance's points of that number of changes.
    pub(super) fn note(&self, instance_id: String, changes: u64, points: Arc<Vec<Point>>) {
        if points.len() > MOST {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let gone = state.instances.remove(&instance_id).map_or(0, |(_, points)| points.len());
        state.points -= gone;
        if state.points + points.len() > MOST {
            (state.instances, state.points) = (HashMap::new(), 0);
        }
        state.points += points.len();
        state.instances.insert(instance_id, (changes, points));
    }
}

#[cfg(test)]
mod tests {
    use vaultferry_vault::Id;

    use super::super::tests::{open, point};
    use super::*;
    use crate::catalog::{Catalog as _, Standing};

    #[test]
    fn points_are_remembered_until_they_change_and_never_more_than_there_is_room_for() {
        let (recent, changes) = (Recent::default(), Changes::default());
        let points = |count: usize| Arc::new(vec![point(1, 1); count]);
        recent.note("a".to_owned(), changes.of("a"), points(3));
        assert_eq!(recent.get("a", changes.of("a")).map(|points| points.len()), Some(3));
        assert_eq!(recent.get("b", changes.of("b")), None);
        changes.count(["b".to_owned()]);
        assert!(recent.get("a", changes.of("a")).is_some(), "another one's points have changed");
        changes.count(["a".to_owned()]);
        assert_eq!(recent.get("a", changes.of("a")), None);
        recent.note("a".to_owned(), changes.of("a"), points(MOST - 10));
        recent.note("b".to_owned(), changes.of("b"), points(10));
        // In the place of what was remembered of it.
        recent.note("b".to_owned(), changes.of("b"), points(9));
        recent.note("b".to_owned(), changes.of("b"), points(10));
        assert!(recent.get("a", changes.of("a")).is_some() && recent.get("b", changes.of("b")).is_some());
        recent.note("c".to_owned(), changes.of("c"), points(MOST + 1));
        assert_eq!(recent.get("c", changes.of("c")), None, "more than there is room for");
        recent.note("c".to_owned(), changes.of("c"), points(1));
        let left = ["a", "b", "c"].map(|id| recent.get(id, changes.of(id)).is_some());
        assert_eq!(left, [false, false, true], "there was no room beside them");
    }

    #[tokio::test]
    async fn all_points_are_those_that_there_are_now() {
        let (_dir, catalog) = open();
        let all = async || catalog.all_points("i").await.expect("points");
        let set = async |n: u8, standing: Option<Standing>| {
            catalog.set_standings("i", vec![(Id::of(&[n]), standing)]).await.expect("set");
        };
        assert!(all().await.is_empty());
        catalog.insert_points(vec![point(2, 10), point(1, 20)]).await.expect("points");
        let first = all().await;
        assert_eq!(*first, [point(1, 20), point(2, 10)], "in the order of their jobs");
        let changes = catalog.point_changes("i").await.expect("a number");
        set(1, Some(Standing::default())).await;
        set(9, Some(Standing { in_archive: true, ..Standing::default() })).await;
        set(9, None).await;
        assert_eq!(catalog.point_changes("i").await.expect("a number"), changes, "nothing of it was new");
        assert!(Arc::ptr_eq(&first, &all().await), "they are read once");
        let deleted = Standing { purge_time: Some(point(9, 99).time), ..Standing::default() };
        set(1, Some(deleted.clone())).await;
        assert_eq!(*all().await, [Point { standing: deleted, ..point(1, 20) }, point(2, 10)]);
        set(1, None).await;
        assert_eq!(*all().await, [point(2, 10)]);
    }
}
