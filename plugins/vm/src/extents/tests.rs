#![allow(clippy::single_range_in_vec_init)] // a list of one range is meant

use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;

/// The size of the small world in which everything is tried, in bytes.
const WORLD: u64 = 96;

/// As the module wants ranges.
fn is_tidy(ranges: &[Range<u64>]) -> bool {
    ranges.iter().all(|range| range.start < range.end) && ranges.windows(2).all(|pair| pair[0].end < pair[1].start)
}

fn bits(ranges: &[Range<u64>]) -> Vec<bool> {
    (0..WORLD).map(|byte| ranges.iter().any(|range| range.contains(&byte))).collect()
}

fn ranges(bits: &[bool]) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    for (byte, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
        push(&mut found, byte as u64..byte as u64 + 1);
    }
    found
}

fn some_bits() -> impl Strategy<Value = Vec<bool>> {
    proptest::collection::vec(any::<bool>(), WORLD as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn sets_of_ranges_are_sets_of_bytes(one in some_bits(), other in some_bits(), grain in 1_u64..20, size in 1..WORLD, most in 1_usize..9) {
        let (a, b) = (ranges(&one), ranges(&other));
        prop_assert!(is_tidy(&a));
        let both: Vec<bool> = one.iter().zip(&other).map(|(x, y)| *x || *y).collect();
        prop_assert_eq!(&bits(&union(&a, &b)), &both);
        prop_assert!(is_tidy(&union(&a, &b)));
        let rest: Vec<bool> = one.iter().zip(&other).map(|(x, y)| *x && !*y).collect();
        prop_assert_eq!(&bits(&subtract(&a, &b)), &rest);
        prop_assert!(is_tidy(&subtract(&a, &b)));
        let grains = |byte: u64| (byte / grain * grain..(byte / grain + 1) * grain).any(|near| near < WORLD && one[near as usize]);
        let wide: Vec<bool> = (0..WORLD).map(|byte| byte < size && grains(byte)).collect();
        prop_assert_eq!(&bits(&align(&a, grain, size)), &wide);
        prop_assert!(is_tidy(&align(&a, grain, size)));
        let coarse = coarsen(a.clone(), most);
        prop_assert!(coarse.len() <= most && is_tidy(&coarse));
        prop_assert!(subtract(&a, &coarse).is_empty(), "nothing is lost");
        prop_assert!(a.len() > most || coarse == a, "nothing is given up without need");
    }
}

/// What one block of a small file is, said in the simplest way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Hole,
    Reserved,
    Plain(u64),
    Odd(u64, u32),
}

const BLOCK: u64 = 4;

/// Compressed, delayed, inline, unknown, and a flag that nobody has thought of yet.
const ODD: [u32; 5] = [0x8, 0x4, 0x300, 0x2, 0x8000];

fn some_block() -> impl Strategy<Value = Block> {
    prop_oneof![
        2 => Just(Block::Hole),
        1 => Just(Block::Reserved),
        // Few addresses: so equal ones, and runs, are frequent.
        6 => (1_u64..12).prop_map(Block::Plain),
        1 => (1_u64..4, prop::sample::select(ODD.to_vec())).prop_map(|(address, flags)| Block::Odd(address, flags)),
    ]
}

/// The blocks as a file system would tell them: one extent for each, or runs put together as `join` says.
fn told(blocks: &[Block], join: bool) -> Vec<FiemapExtent> {
    let mut extents: Vec<FiemapExtent> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let logical = index as u64 * BLOCK;
        let (physical, flags) = match *block {
            Block::Hole => continue,
            Block::Reserved => (900 * BLOCK + logical, UNWRITTEN),
            Block::Plain(address) => (address * BLOCK, if address.is_multiple_of(2) { SHARED } else { 0 }),
            Block::Odd(address, flags) => (address * BLOCK, flags),
        };
        let next = FiemapExtent { logical, physical, length: BLOCK, flags };
        match extents.last_mut() {
            Some(last)
                if join
                    && flags & !(SHARED | UNWRITTEN) == 0
                    && last.logical + last.length == logical
                    && last.physical + last.length == physical
                    && last.flags | SHARED == flags | SHARED =>
            {
                last.length += BLOCK;
            }
            _ => extents.push(next),
        }
    }
    if let Some(last) = extents.last_mut() {
        last.flags |= LAST;
    }
    extents
}

fn same(one: Block, other: Block) -> bool {
    match (one, other) {
        (Block::Hole | Block::Reserved, Block::Hole | Block::Reserved) => true,
        (Block::Plain(one), Block::Plain(other)) => one == other,
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn two_maps_differ_where_their_blocks_do(
        base in proptest::collection::vec(some_block(), 0..24),
        new in proptest::collection::vec(some_block(), 0..24),
        cut in 0_u64..BLOCK,
        (join_base, join_new) in (any::<bool>(), any::<bool>()),
    ) {
        let size = (new.len() as u64 * BLOCK).saturating_sub(cut);
        let found = changed(&told(&base, join_base), &told(&new, join_new), size);
        prop_assert!(is_tidy(&found));
        let block = |blocks: &[Block], byte: u64| blocks.get((byte / BLOCK) as usize).copied().unwrap_or(Block::Hole);
        let expected: Vec<bool> =
            (0..WORLD).map(|byte| byte < size && !same(block(&base, byte), block(&new, byte))).collect();
        prop_assert_eq!(bits(&found), expected);
    }
}

proptest! {
    #[test]
    fn places_do_not_depend_on_how_they_are_told(
        blocks in proptest::collection::vec(some_block(), 0..24),
        other in proptest::collection::vec(some_block(), 0..24),
    ) {
        let one = places(&told(&blocks, false));
        prop_assert_eq!(&one, &places(&told(&blocks, true)));
        // Telling blocks with nothing odd apart is what a comparison is for.
        let odd = |block: &Block| matches!(block, Block::Odd(..) | Block::Reserved);
        if !blocks.iter().chain(&other).any(odd) {
            let size = blocks.len().max(other.len()) as u64 * BLOCK;
            let same = changed(&told(&blocks, true), &told(&other, false), size).is_empty();
            prop_assert_eq!(one == places(&told(&other, true)), same);
        }
    }
}

#[test]
fn sharing_does_not_move_anything() {
    let whole = FiemapExtent { logical: 0, physical: 4096, length: 8192, flags: LAST };
    let first = FiemapExtent { length: 4096, flags: SHARED, ..whole };
    let second = FiemapExtent { logical: 4096, physical: 8192, length: 4096, flags: LAST };
    assert_eq!(places(&[whole]), places(&[first, second]));
    assert_ne!(places(&[whole]), places(&[first, FiemapExtent { physical: 12_288, ..second }]));
}

#[test]
fn a_file_equals_itself_but_for_what_is_doubtful() {
    let plain = FiemapExtent { logical: 0, physical: 4096, length: 8192, flags: SHARED };
    let compressed = FiemapExtent { logical: 8192, physical: 65536, length: 4096, flags: 0x8 | LAST };
    assert_eq!(changed(&[plain, compressed], &[plain, compressed], 20_000), [8192..12_288]);
}

#[test]
fn reserved_space_that_was_written_to_has_changed() {
    let reserved = FiemapExtent { logical: 0, physical: 4096, length: 8192, flags: UNWRITTEN | LAST };
    let written = FiemapExtent { flags: LAST, ..reserved };
    // The same address, and yet no zeros any more.
    assert_eq!(changed(&[reserved], &[written], 8192), [0..8192]);
    assert!(changed(&[reserved], &[], 8192).is_empty());
}

#[test]
fn extents_over_one_another_are_doubtful() {
    let one = FiemapExtent { logical: 0, physical: 4096, length: 8192, flags: 0 };
    let over = FiemapExtent { logical: 4096, physical: 8192, length: 8192, flags: LAST };
    assert_eq!(changed(&[one, over], &[one, over], 12_288), [8192..12_288]);
}

#[test]
fn holes_of_a_real_file_are_left_out() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(8 << 20).expect("its size");
    file.write_all_at(&[7; 3], (4 << 20) + 5).expect("three bytes");
    file.sync_all().expect("on the disk");
    let found = allocated(&file, 8 << 20).expect("its holes");
    assert!(is_tidy(&found));
    let place = (4 << 20) + 5_u64;
    assert!(found.iter().any(|range| range.contains(&place)), "{found:?}");
    // A file system that knows no holes says that all is data.
    let bytes: u64 = found.iter().map(|range| range.end - range.start).sum();
    assert!(bytes <= 1 << 20 || found == [0..8 << 20], "{found:?}");
    assert!(allocated(&file, 0).expect("nothing").is_empty());
}

#[test]
fn what_cannot_tell_holes_is_all_data() {
    // Like a block device, it refuses SEEK_DATA.
    let file = File::open("/proc/self/mounts").expect("a file");
    assert_eq!(allocated(&file, 10_000).expect("all of it"), [0..10_000]);
}
