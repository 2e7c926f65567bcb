//! Reading a part of a pack, and telling a damaged pack from a store that refuses.
//!
//! A store says [`store::Error::Rejected`] of a range that reaches past a file's end, and of whatever else it does not want: a request that
//! it does not understand, a policy of the account, an answer of a proxy. Only the file's size tells which of them it was. To call a
//! refusal damage would make people give up points that are whole.

use std::ops::Range;

use bytes::Bytes;

use super::{Repository, pack_key};
use crate::error::Error;
use crate::id::Id;
use crate::store;

impl Repository {
    /// The bytes of a pack in this range, as many as were asked for.
    ///
    /// [`Error::Damaged`] when the pack is missing, or ends before the range does; any other failure is the store's own error, also when the
    /// store could not be asked for the size.
    pub(crate) async fn pack_range(&self, pack: &Id, range: Range<u64>) -> Result<Bytes, Error> {
        let (store, key) = (&**self.store(), pack_key(pack));
        let damaged = |detail: String| Error::damaged(format!("pack {pack}"), detail);
        let missing = || damaged("it is missing".to_owned());
        let length = range.end.saturating_sub(range.start);
        let refusal = match store.get(&key, Some(range.clone())).await {
            Ok(bytes) if bytes.len() as u64 == length => return Ok(bytes),
            Ok(bytes) => {
                let detail = format!("{key}: {} bytes came instead of {length}", bytes.len());
                store::Error::Unavailable { store: store.location().to_owned(), detail }
            }
            Err(store::Error::NotFound { .. }) => return Err(missing()),
            Err(error @ store::Error::Rejected { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        match store.head(&key).await {
            Ok(None) => Err(missing()),
            Ok(Some(file)) if file.size < range.end => {
                let detail = format!("it is too short: it has {} bytes, and its index wants {}", file.size, range.end);
                Err(damaged(detail))
            }
            Ok(Some(_)) | Err(_) => Err(refusal.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use secrecy::SecretString;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::Store as _;
    use crate::store::faulty::{Fault, Faulty, Operation, Plan};
    use crate::store::memory::Memory;

    const SIZE: u64 = 1000;

    /// A repository over the store, and a "pack" of [`SIZE`] bytes in it.
    async fn pack() -> (Arc<Memory>, Repository, Id) {
        let memory = Arc::new(Memory::new("m"));
        let (shared, password): (store::Shared, _) = (memory.clone(), SecretString::from("5e".repeat(32)));
        let repository = Repository::init(shared, &password, &CancellationToken::new()).await.expect("init");
        let body = vec![7; SIZE as usize];
        let id = Id::of(&body);
        memory.put_if_absent(&pack_key(&id), body.into()).await.expect("put");
        (memory, repository, id)
    }

    fn failing(repository: &Repository, memory: &Arc<Memory>, plan: Plan) -> Repository {
        repository.over(Arc::new(Faulty::new(memory.clone(), plan)))
    }

    #[track_caller]
    fn damage(result: Result<Bytes, Error>) -> String {
        match result {
            Err(Error::Damaged { what, detail }) => format!("{what}: {detail}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_truncated_pack_is_damaged_and_a_missing_one_is_missing() {
        let (memory, repository, id) = pack().await;
        assert_eq!(repository.pack_range(&id, 990..SIZE).await.expect("whole").len(), 10);
        assert_eq!(
            damage(repository.pack_range(&id, 990..SIZE + 1).await),
            format!("pack {id}: it is too short: it has 1000 bytes, and its index wants 1001")
        );
        // A store that refuses it for good, and would refuse a whole pack too: the size decides.
        let refusing = failing(&repository, &memory, Plan::new().from(Operation::Get, 1, Fault::Rejected));
        assert!(damage(refusing.pack_range(&id, 0..SIZE + 1).await).contains("too short"));
        memory.delete(&pack_key(&id)).await.expect("deleted");
        assert_eq!(damage(repository.pack_range(&id, 0..10).await), format!("pack {id}: it is missing"));
        assert_eq!(damage(refusing.pack_range(&id, 0..10).await), format!("pack {id}: it is missing"));
    }

    #[tokio::test]
    async fn an_answer_that_was_cut_off_is_no_damage_of_a_whole_pack() {
        let (memory, repository, id) = pack().await;
        let cut = failing(&repository, &memory, Plan::new().from(Operation::Get, 1, Fault::ShortAnswer));
        let result = cut.pack_range(&id, 0..SIZE).await;
        assert!(
            matches!(&result, Err(Error::Store(store::Error::Unavailable { detail, .. })) if detail.contains("500 bytes came")),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn what_a_store_refuses_of_a_whole_pack_is_no_damage() {
        let (memory, repository, id) = pack().await;
        let on_get = |fault| Plan::new().on(Operation::Get, 1, fault);
        for head in [None, Some(Fault::Rejected), Some(Fault::Unavailable), Some(Fault::AccessDenied)] {
            let plan = head.into_iter().fold(on_get(Fault::Rejected), |plan, head| plan.on(Operation::Head, 1, head));
            let result = failing(&repository, &memory, plan).pack_range(&id, 0..SIZE).await;
            assert!(
                matches!(&result, Err(Error::Store(store::Error::Rejected { detail, .. })) if detail == "scripted fault"),
                "{head:?}: {result:?}"
            );
        }
        let denied = failing(&repository, &memory, on_get(Fault::AccessDenied)).pack_range(&id, 0..SIZE).await;
        assert!(matches!(denied, Err(Error::Store(store::Error::AccessDenied { .. }))), "{denied:?}");
        let away = failing(&repository, &memory, on_get(Fault::Unavailable)).pack_range(&id, 0..SIZE).await;
        assert!(matches!(away, Err(Error::Store(store::Error::Unavailable { .. }))), "{away:?}");
    }
}
