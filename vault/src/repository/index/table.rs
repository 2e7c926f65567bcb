//! A set of numbers that are found by the id of what they stand for: open addressing with 4 bytes a slot.
//!
//! The ids themselves lie with the caller, who numbers its things from 0. A slot holds the number and 5 bits of the id, so that a probe
//! looks at a wrong id only once in 32 times. Linear probing in [`SHARDS`] parts, each of which grows by itself and by a fifth: what is
//! copied while one grows is small, and the whole is never far above 5 bytes for each number.

use crate::id::Id;

/// Parts. The first byte of an id chooses one.
const SHARDS: usize = 256;
/// Bits of a number in a slot.
const NUMBER_BITS: u32 = 27;
/// Numbers are less than this: 134 million, which is 134 TB in chunks of 1 MB.
pub(super) const MAX_NUMBER: u32 = (1 << NUMBER_BITS) - 1;
const EMPTY: u32 = u32::MAX;
/// A shard grows when it is fuller than 7 / 8.
const FULL: (usize, usize) = (7, 8);
/// And then to 6 / 5 of its size, so that it is at least 73 % full.
const GROWTH: (usize, usize) = (6, 5);
/// Slots of a shard at first.
const FIRST: usize = 8;

#[derive(Debug)]
pub(super) struct Table {
    shards: Vec<Shard>,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Box<[u32]>,
    used: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }
}

impl Table {
    /// The number under which `id` was put. `id_of` tells the id of a number that was put.
    pub(super) fn get<'a>(&self, id: &Id, id_of: impl Fn(u32) -> &'a Id) -> Option<u32> {
        self.shards[shard_of(id)].get(id, id_of)
    }

    /// Puts a number whose id is not in the table yet.
    pub(super) fn put<'a>(&mut self, id: &Id, number: u32, id_of: impl Fn(u32) -> &'a Id) {
        self.shards[shard_of(id)].put(id, number, id_of);
    }

    /// Bytes that it has taken.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        let slots: usize = self.shards.iter().map(|shard| shard.slots.len() * size_of::<u32>()).sum();
        slots + self.shards.capacity() * size_of::<Shard>()
    }
}

impl Shard {
    fn get<'a>(&self, id: &Id, id_of: impl Fn(u32) -> &'a Id) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let (mut at, tag) = (self.home(id), tag_of(id));
        loop {
            match self.slots[at] {
                EMPTY => return None,
                slot if slot & !MAX_NUMBER == tag && id_of(slot & MAX_NUMBER) == id => return Some(slot & MAX_NUMBER),
                _ => at = self.next(at),
            }
        }
    }

    fn put<'a>(&mut self, id: &Id, number: u32, id_of: impl Fn(u32) -> &'a Id) {
        if (self.used + 1) * FULL.1 > self.slots.len() * FULL.0 {
            self.grow(id_of);
        }
        self.place(id, number);
        self.used += 1;
    }

    fn place(&mut self, id: &Id, number: u32) {
        let mut at = self.home(id);
        while self.slots[at] != EMPTY {
            at = self.next(at);
        }
        self.slots[at] = tag_of(id) | number;
    }

    fn grow<'a>(&mut self, id_of: impl Fn(u32) -> &'a Id) {
        let size = (self.slots.len() * GROWTH.0).div_ceil(GROWTH.1).max(self.slots.len() + FIRST);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; size].into_boxed_slice());
        for slot in old {
            if slot != EMPTY {
                let number = slot & MAX_NUMBER;
                self.place(id_of(number), number);
            }
        }
    }

    fn home(&self, id: &Id) -> usize {
        let [_, a, b, c, d, ..] = *id.as_bytes();
        // A multiplication spreads 32 bits over any number of slots.
        ((u64::from(u32::from_be_bytes([a, b, c, d])) * self.slots.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }
}

fn shard_of(id: &Id) -> usize {
    usize::from(id.as_bytes()[0])
}

/// Five bits in the place above the number. All ones together with [`MAX_NUMBER`], which is no number, would be [`EMPTY`].
fn tag_of(id: &Id) -> u32 {
    u32::from(id.as_bytes()[5] >> 3) << NUMBER_BITS
}
