//! Every decoder of bytes that come from a store, as a plain function for fuzzers: any bytes in, nothing out. None may panic, or take more
//! memory than the few bytes can justify. `tests/fuzz.rs` drives them for a while; `cargo fuzz` targets can call them too.
//!
//! What lies behind a seal is decoded from its plaintext here, because no fuzzer guesses a tag.

use secrecy::SecretString;

use crate::archive::Request;
use crate::id::Id;
use crate::lease::LeaseRecord;
use crate::manifest::Manifest;
use crate::percent;
use crate::records::{
    self, DamageRecord, InstanceRecord, OwnerRecord, PackList, PasswordRecord, PointEvent, PolicyRecord,
};
use crate::records::{PruneMark, RecoveryKeyRecord, ServerRecord, VaultKeyRecord, VaultRecord};
use crate::repository::crypto::{OVERHEAD, SealKey};
use crate::repository::index::{Index, IndexFile};
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::Tree;
use crate::repository::{self, key_file, pack};
use crate::settings::Settings;

/// A target's name, and the target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("pack", pack_file),
    ("pack-header", pack_header),
    ("blob", blob),
    ("index", index),
    ("snapshot", snapshot),
    ("tree", tree),
    ("key-file", key_file),
    ("config", config),
    ("record", record),
    ("percent", percent),
];

fn key() -> SealKey {
    SealKey::new([7; 64])
}

/// A whole pack file.
pub fn pack_file(bytes: &[u8]) {
    let _ = pack::parse(&Id::of(b"fuzz"), bytes, &key());
}

/// The plaintext of a pack's header.
pub fn pack_header(bytes: &[u8]) {
    let Ok(mut tail) = key().seal(bytes) else { return };
    let length = (tail.len() as u32).to_le_bytes();
    tail.extend_from_slice(&length);
    // A size that fits, as far as it can be told, so that the end of the parser is reached.
    let lengths = bytes.chunks(41).filter_map(|entry| entry.get(1..5)?.try_into().ok().map(u32::from_le_bytes));
    let payload: u64 = lengths.map(u64::from).sum();
    let _ = pack::parse_tail(&Id::of(b"fuzz"), payload + tail.len() as u64, &tail, &key());
}

/// A blob: four bytes that claim the length of its plaintext, and what lies in the seal.
pub fn blob(bytes: &[u8]) {
    let Some((claimed, stored)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(sealed) = key().seal(stored) else { return };
    let (length, raw_length) = ((stored.len() + OVERHEAD) as u32, Some(u32::from_le_bytes(*claimed)));
    for raw_length in [raw_length, None] {
        let blob = pack::PackedBlob { id: Id::of(b"x"), kind: pack::BlobKind::Data, offset: 0, length, raw_length };
        let pool = std::sync::Arc::default();
        let _ = crate::reader::decode::verify_pack(&key(), sealed.clone().into(), &[blob], &pool);
    }
}

/// An index file, unsealed, compressed or not.
pub fn index(bytes: &[u8]) {
    let Ok(file) = repository::decode_json::<IndexFile>(bytes) else { return };
    let mut index = Index::default();
    for pack in file.packs {
        if let Ok(blobs) = pack.packed_blobs() {
            let _ = index.add_pack(pack.id, &blobs);
        }
    }
}

/// A snapshot file, unsealed, compressed or not.
pub fn snapshot(bytes: &[u8]) {
    let _ = repository::decode_json::<Snapshot>(bytes);
}

/// A tree blob.
pub fn tree(bytes: &[u8]) {
    let id = Id::of(b"fuzz");
    let Ok(tree) = Tree::from_blob(&id, bytes) else { return };
    let _ = (tree.streams().count(), tree.parts(&id), tree.part_chunks(&id), tree.to_blob());
}

/// A key file.
pub fn key_file(bytes: &[u8]) {
    let _ = key_file::open("fuzz", bytes, &SecretString::from("password"));
}

/// The config, unsealed.
pub fn config(bytes: &[u8]) {
    let _ = repository::decode_config("fuzz", bytes);
}

/// Every record of a vault.
pub fn record(bytes: &[u8]) {
    let _ = records::from_bytes::<VaultRecord>("fuzz", bytes);
    let _ = records::from_bytes::<RecoveryKeyRecord>("fuzz", bytes);
    let _ = records::from_bytes::<PolicyRecord>("fuzz", bytes);
    let _ = records::from_bytes::<InstanceRecord>("fuzz", bytes);
    let _ = records::from_bytes::<PasswordRecord>("fuzz", bytes);
    let _ = records::from_bytes::<PackList>("fuzz", bytes);
    let _ = records::from_bytes::<PruneMark>("fuzz", bytes);
    let _ = records::from_bytes::<DamageRecord>("fuzz", bytes);
    let _ = records::from_bytes::<OwnerRecord>("fuzz", bytes);
    let _ = records::from_bytes::<Manifest>("fuzz", bytes);
    let _ = records::from_bytes::<PointEvent>("fuzz", bytes);
    let _ = records::from_bytes::<VaultKeyRecord>("fuzz", bytes);
    let _ = records::from_bytes::<ServerRecord>("fuzz", bytes);
    let _ = records::from_bytes::<Settings>("fuzz", bytes);
    let _ = records::from_bytes::<Request>("fuzz", bytes);
    let _ = records::from_bytes::<LeaseRecord>("fuzz", bytes);
}

/// A name in an identity. What it says, encoded again, says the same.
pub fn percent(bytes: &[u8]) {
    if let Some(name) = std::str::from_utf8(bytes).ok().and_then(percent::decode) {
        assert_eq!(percent::decode(&percent::encode(&name)), Some(name));
    }
}
