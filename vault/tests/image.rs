//! Images of which only what has changed is read: chunks of an earlier point are named, and the new point is whole all the same.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::Id;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Key};
use vaultferry_vault::writer::{Backup, Extent, IMAGE_CHUNK, Options, SnapshotMeta, Staged, WriteError};

const DISK: &str = "disk0.raw";

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

async fn repository() -> (store::Shared, Arc<Repository>) {
    let store: store::Shared = Arc::new(Memory::new("m"));
    let password = SecretString::from("5e".repeat(32));
    let repository = Repository::init(store.clone(), &password, &CancellationToken::new()).await.expect("init");
    (store, Arc::new(repository))
}

async fn begin(repository: &Arc<Repository>, part_size: u64, meter: &Arc<Meter>) -> Backup {
    let options = Options { part_size, ..Options::default() };
    Backup::begin(repository.clone(), options, meter.clone(), &CancellationToken::new()).await.expect("begin")
}

async fn write(backup: &Backup, length: usize, extents: Vec<Extent>) -> Result<(), WriteError> {
    let extents = stream::iter(extents.into_iter().map(Ok));
    let written = backup.streams().write_image(DISK, length as u64, extents, &CancellationToken::new()).await;
    written.map(|_| ())
}

async fn publish(repository: &Arc<Repository>, backup: Backup) -> Staged {
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: "host".to_owned(), tags: Vec::new() };
    let staged = backup.stage(meta, &CancellationToken::new()).await.expect("stage");
    let key = FileKind::Snapshot.key(&staged.snapshot_id);
    repository.store().put_if_absent(&key, staged.sealed.clone()).await.expect("published");
    staged
}

async fn read(repository: &Arc<Repository>, point: &Staged) -> (Vec<u8>, Vec<Id>) {
    let cancel = CancellationToken::new();
    let point = PointReader::open(repository.clone(), point.snapshot_id, &cancel).await.expect("a point");
    let mut bytes = Vec::new();
    point.copy_stream(DISK, &mut bytes, &Meter::default(), &cancel).await.expect("read");
    (bytes, point.chunk_ids(DISK).expect("its chunks"))
}

/// The image, chunk by chunk as the numbers say: named, or as data that is cut anywhere, or as a hole where it is zeros.
fn extents(
    image: &[u8],
    changed: &[bool],
    parent: &[Id],
    random_numbers: &mut rand::rngs::StdRng,
) -> (Vec<Extent>, u64) {
    let (mut extents, mut given) = (Vec::new(), 0);
    for (number, chunk) in image.chunks(IMAGE_CHUNK).enumerate() {
        if !changed[number] {
            match extents.last_mut() {
                Some(Extent::Same(ids)) if random_numbers.random_bool(0.7) => ids.push(parent[number]),
                _ => extents.push(Extent::Same(vec![parent[number]])),
            }
            continue;
        }
        given += chunk.len() as u64;
        if chunk.iter().all(|byte| *byte == 0) {
            extents.push(Extent::Hole(chunk.len() as u64));
            continue;
        }
        let cut = random_numbers.random_range(0..chunk.len());
        extents.push(Extent::Data(Bytes::copy_from_slice(&chunk[..cut])));
        extents.push(Extent::Data(Bytes::copy_from_slice(&chunk[cut..])));
    }
    (extents, given)
}

/// Generations of an image with changes at random, each read with only what has changed, in one part and in many.
#[tokio::test]
async fn every_generation_is_whole_and_stores_only_what_has_changed() {
    for seed in 0..6_u64 {
        let mut random_numbers = rand::rngs::StdRng::seed_from_u64(seed);
        let length = random_numbers.random_range(1..7 * IMAGE_CHUNK);
        let part_size = [1 << 40, 2 * IMAGE_CHUNK as u64][(seed % 2) as usize];
        let chunks = length.div_ceil(IMAGE_CHUNK);
        let mut image = random(seed, length);
        let (_, repository) = repository().await;
        let (mut changed, mut parent) = (vec![true; chunks], Vec::new());
        for generation in 0..5 {
            let (extents, given) = extents(&image, &changed, &parent, &mut random_numbers);
            let meter = Arc::<Meter>::default();
            let backup = begin(&repository, part_size, &meter).await;
            for (number, id) in parent.iter().enumerate() {
                let expected = (length - number * IMAGE_CHUNK).min(IMAGE_CHUNK) as u64;
                assert_eq!(backup.streams().known_chunk(id), Some(expected), "seed {seed}, chunk {number}");
            }
            write(&backup, length, extents).await.expect("written");
            assert_eq!(meter.read(), given, "seed {seed}, generation {generation}: what is named is not read");
            let staged = publish(&repository, backup).await;
            let (bytes, ids) = read(&repository, &staged).await;
            assert!(bytes == image, "seed {seed}, generation {generation}");
            assert_eq!(ids.len(), chunks, "seed {seed}");
            // Trees and their packs come on top.
            assert!(staged.stored_bytes < given + (1 << 20), "seed {seed}, generation {generation}");
            parent = ids;
            changed = (0..chunks).map(|_| random_numbers.random_bool(0.3)).collect();
            for (number, chunk) in image.chunks_mut(IMAGE_CHUNK).enumerate().filter(|(number, _)| changed[*number]) {
                match random_numbers.random_bool(0.3) {
                    true => chunk.fill(0),
                    false => chunk[0] ^= (number + generation) as u8 | 1,
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_named_wrongly_is_refused() {
    let (store, repository) = repository().await;
    let meter = Arc::<Meter>::default();
    let length = 2 * IMAGE_CHUNK + 5;
    let image = random(1, length);
    let backup = begin(&repository, 1 << 40, &meter).await;
    write(&backup, length, vec![Extent::Data(image.clone().into())]).await.expect("written");
    let first = publish(&repository, backup).await;
    let (_, ids) = read(&repository, &first).await;
    let data = |from: usize, to: usize| Extent::Data(Bytes::copy_from_slice(&image[from..to]));
    let wrong = [
        ("a chunk that nobody has stored", vec![Extent::Same(vec![ids[0], Id::of(b"none"), ids[2]])]),
        ("in the middle of a chunk", vec![data(0, 7), Extent::Same(vec![ids[0], ids[1], ids[2]])]),
        ("a short chunk in a long one's place", vec![Extent::Same(vec![ids[2], ids[1], ids[0]])]),
        ("more than the image has", vec![Extent::Same(vec![ids[0], ids[1], ids[2], ids[2]])]),
        ("less than the image has", vec![Extent::Same(vec![ids[0], ids[1]])]),
    ];
    for (what, extents) in wrong {
        let backup = begin(&repository, 1 << 40, &meter).await;
        let written = write(&backup, length, extents).await;
        assert!(matches!(written, Err(WriteError::Input(_))), "{what}");
    }
    // A pack that is gone takes its chunks with it: they are not known, so that nobody names them.
    let pack = first.packs.iter().max_by_key(|(_, size)| *size).expect("a pack").0;
    let key: Key = vaultferry_vault::repository::pack_key(&pack);
    store.delete(&key).await.expect("deleted");
    let backup = begin(&repository, 1 << 40, &meter).await;
    assert_eq!(ids.iter().filter_map(|id| backup.streams().known_chunk(id)).count(), 0);
}
