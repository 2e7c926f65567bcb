//! The prune protocol as a model, and every interleaving of it: two backups that need the same chunk, prunes that overlap or sleep in the
//! middle, an undelete. A kill is an actor that never gets another turn, so every prefix of every order is a kill, too.
//!
//! Never does a published point lack a chunk. Each rule of the protocol is then broken once, and the model must notice.

use std::collections::{HashSet, VecDeque};

/// The pack of the old point, which has the chunk; then those of the two backups, with a tree each, and the chunk when they store it anew.
const X: u8 = 1;
const Y: [u8; 2] = [2, 4];
const BACKUPS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The commit reads the epoch before it writes its record.
    CheckBeforeRecord,
    /// The backup uses packs that are marked.
    WriterUsesMarked,
    /// The commit does not mind what the mark after its backup's beginning says.
    CommitIgnoresMark,
    /// The commit passes after two prunes.
    CommitAfterTwoPrunes,
    /// The prune deletes what it has marked itself.
    DeletesAtOnce,
    /// The prune reads the records before the marks.
    RecordsBeforeMarks,
    /// The prune lists the packs before it reads the index.
    PacksBeforeIndex,
    /// The purge of a point that somebody brings back at this moment goes through.
    PurgeDoesNotLook,
    /// The record of a commit that was refused makes a doomed pack good again.
    DoomIsForgotten,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum At {
    #[default]
    Begin,
    List,
    Index,
    Upload,
    PutIndex,
    Verify,
    ListPacks,
    Record,
    Check,
    Publish,
    Abandon,
    Read,
    Mark,
    Clean,
    Delete,
    End,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Backup {
    at: At,
    seen: u8,
    listing: u8,
    /// The pack that has the chunk for this point.
    chunk_in: u8,
    /// Its own pack holds the chunk, too.
    stores_chunk: bool,
    listed: bool,
    recorded: bool,
    abandoned: bool,
    published: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Prune {
    at: At,
    epoch: u8,
    /// Points whose records were read: the backups, and 4 for the old point.
    needed: u8,
    finished: u8,
    index: u8,
    present: u8,
    delete: u8,
    mark: u8,
    candidates: u8,
    unneeded: u8,
}

/// What the log of the old point says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Old {
    #[default]
    Deleted,
    Undeleted,
    Listed,
    Purged,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct World {
    present: u8,
    indexed: u8,
    /// A pack list of the old point's commit names X.
    old_listed: bool,
    old: Old,
    undelete: bool,
    epoch: u8,
    /// (marked, candidates) of each epoch.
    marks: [(u8, u8); 8],
    backups: [Backup; BACKUPS],
    prunes: [Prune; 3],
}

impl World {
    /// The packs that have the chunk.
    fn chunk_packs(&self) -> u8 {
        let of = |i: usize| if self.backups[i].stores_chunk { Y[i] } else { 0 };
        X | of(0) | of(1)
    }

    fn is_broken(&self) -> bool {
        let sound = self.present & self.indexed;
        let chunk_lost = sound & self.chunk_packs() == 0;
        let lost = |i: usize| self.backups[i].published && (chunk_lost || sound & Y[i] == 0);
        lost(0) || lost(1) || (self.old == Old::Listed && chunk_lost)
    }

    fn marked(&self, epoch: u8) -> u8 {
        self.marks[epoch as usize].0
    }

    /// Every world that is one step away.
    fn next(&self, broken: Broken, out: &mut Vec<Self>) {
        for i in 0..BACKUPS {
            self.step_backup(i, broken, out);
        }
        for i in 0..self.prunes.len() {
            // Those that have not begun are alike: one of them is enough.
            if self.prunes[i].at != At::Begin || self.prunes[..i].iter().all(|other| other.at != At::Begin) {
                self.step_prune(i, broken, out);
            }
        }
        if self.undelete {
            match self.old {
                Old::Deleted => out.push(Self { old: Old::Undeleted, ..*self }),
                Old::Undeleted => out.push(Self { old: Old::Listed, ..*self }),
                Old::Listed | Old::Purged => {}
            }
        }
    }

    fn step_backup(&self, i: usize, broken: Broken, out: &mut Vec<Self>) {
        let mut world = *self;
        let backup = &mut world.backups[i];
        let check_first = broken == Broken::CheckBeforeRecord;
        match backup.at {
            At::Begin => (backup.seen, backup.at) = (self.epoch, At::List),
            At::List => (backup.listing, backup.at) = (self.present, At::Index),
            At::Index => {
                let marked = if broken == Broken::WriterUsesMarked { 0 } else { self.marked(backup.seen) };
                let found = backup.listing & self.indexed & self.chunk_packs() & !marked;
                backup.listing = 0;
                backup.at = At::Upload;
                // Whichever of them the index gives.
                for pack in [X, Y[0], Y[1]].into_iter().filter(|pack| found & pack != 0) {
                    let mut chosen = world;
                    chosen.backups[i].chunk_in = pack;
                    out.push(chosen);
                }
                if found != 0 {
                    return;
                }
                (world.backups[i].chunk_in, world.backups[i].stores_chunk) = (Y[i], true);
            }
            At::Upload => {
                world.present |= Y[i];
                world.backups[i].at = At::PutIndex;
            }
            At::PutIndex => {
                world.indexed |= Y[i];
                world.backups[i].at = At::Verify;
            }
            At::Verify => {
                let complete = self.present & backup.chunk_in != 0 && self.present & Y[i] != 0;
                backup.at = if complete { At::ListPacks } else { At::End };
            }
            At::ListPacks => {
                (backup.listed, backup.at) = (true, if check_first { At::Check } else { At::Record });
            }
            At::Record => {
                (backup.recorded, backup.at) = (true, if check_first { At::Publish } else { At::Check });
            }
            At::Check => {
                let (now, seen) = (self.epoch, backup.seen);
                let forbidden = if broken == Broken::CommitIgnoresMark { 0 } else { self.marked(seen + 1) };
                let passes = now == seen
                    || (now == seen + 1 && forbidden & (backup.chunk_in | Y[i]) == 0)
                    || (now == seen + 2 && broken == Broken::CommitAfterTwoPrunes);
                backup.at = match passes {
                    true if check_first => At::Record,
                    true => At::Publish,
                    false => At::Abandon,
                };
            }
            At::Publish => (backup.published, backup.at) = (true, At::End),
            At::Abandon => (backup.abandoned, backup.at) = (true, At::End),
            _ => return,
        }
        out.push(world);
    }

    fn step_prune(&self, i: usize, broken: Broken, out: &mut Vec<Self>) {
        let mut world = *self;
        let prune = &mut world.prunes[i];
        let records_first = broken == Broken::RecordsBeforeMarks;
        match prune.at {
            At::Begin => {
                // The purge of what is due comes before the survey.
                let looks = broken != Broken::PurgeDoesNotLook;
                if self.old == Old::Deleted || (self.old == Old::Undeleted && !looks) {
                    // The undelete goes on, unaware of it, when nobody looks.
                    let (old, undelete) = match self.old {
                        Old::Undeleted => (Old::Undeleted, true),
                        _ => (Old::Purged, self.undelete),
                    };
                    (world.old, world.undelete) = (old, undelete);
                }
                let needs_old = matches!(world.old, Old::Undeleted | Old::Listed) && looks;
                let prune = &mut world.prunes[i];
                if needs_old {
                    prune.needed |= 4;
                }
                prune.at = if records_first { At::Record } else { At::Read };
            }
            At::Read => {
                prune.epoch = self.epoch;
                prune.at = if records_first { At::Index } else { At::Record };
            }
            At::Record => {
                for (j, backup) in self.backups.iter().enumerate() {
                    if backup.recorded && !backup.abandoned {
                        prune.needed |= 1 << j;
                    }
                    if backup.listed && (backup.published || backup.abandoned) {
                        prune.finished |= Y[j];
                    }
                }
                if self.old_listed {
                    prune.finished |= X;
                }
                prune.at = match (records_first, broken == Broken::PacksBeforeIndex) {
                    (true, _) => At::Read,
                    (_, true) => At::List,
                    _ => At::Index,
                };
            }
            At::Index => {
                prune.index = self.indexed;
                prune.at = At::List;
                if broken == Broken::PacksBeforeIndex {
                    world.survey(i, broken);
                }
            }
            At::List => {
                prune.present = self.present;
                if broken == Broken::PacksBeforeIndex {
                    prune.at = At::Index;
                } else {
                    world.survey(i, broken);
                }
            }
            At::Mark if self.epoch == prune.epoch => {
                world.marks[prune.epoch as usize + 1] = (prune.mark, prune.candidates);
                prune.at = At::Clean;
                world.epoch += 1;
            }
            At::Mark => prune.at = At::End,
            At::Clean => {
                let gone = prune.delete | (prune.index & !prune.present & prune.unneeded);
                prune.at = At::Delete;
                world.indexed &= !gone;
            }
            At::Delete => {
                let one = prune.delete & prune.delete.wrapping_neg();
                prune.delete &= !one;
                if prune.delete == 0 {
                    *prune = Prune { at: At::End, ..Prune::default() };
                }
                world.present &= !one;
            }
            _ => return,
        }
        // Prunes are alike: their order does not make another world.
        world.prunes.sort_unstable();
        out.push(world);
    }

    /// Steps 2 to 5 of the prune's table, from what was read.
    fn survey(&mut self, i: usize, broken: Broken) {
        let (chunk_packs, prune) = (self.chunk_packs(), self.prunes[i]);
        let before = self.marks[prune.epoch as usize];
        let doomed = before.0 & prune.epoch.checked_sub(1).map_or(0, |epoch| self.marked(epoch));
        let sound = prune.index & prune.present;
        let (mut holders, mut complete) = (0, true);
        for (j, own) in Y.iter().enumerate().take(BACKUPS) {
            if prune.needed & 1 << j != 0 {
                complete &= sound & own != 0;
                holders |= own & prune.index;
            }
        }
        if prune.needed != 0 {
            let choices = [sound & !before.0, sound & !doomed, sound, prune.index];
            let packs = choices.map(|packs| packs & chunk_packs).into_iter().find(|packs| *packs != 0);
            complete &= sound & chunk_packs != 0;
            let packs = packs.unwrap_or(0);
            // One that is kept anyway, or the first.
            holders |= if packs & holders != 0 { packs & holders } else { packs & packs.wrapping_neg() };
        }
        let unneeded = !holders & (prune.index | if complete { 7 } else { 0 });
        let doomed = if broken == Broken::DoomIsForgotten { 0 } else { doomed };
        let candidate = prune.present & (unneeded | doomed);
        let mark = candidate & (prune.finished | before.0 | before.1);
        let delete = match broken {
            Broken::DeletesAtOnce => mark & unneeded,
            _ => mark & before.0 & unneeded,
        };
        let prune = &mut self.prunes[i];
        (prune.mark, prune.candidates, prune.delete) = (mark, candidate & !mark, delete);
        (prune.unneeded, prune.needed, prune.finished, prune.at) = (unneeded, 0, 0, At::Mark);
    }
}

/// The worlds in which the walk begins: X of a deleted point, or left over by a failed backup; marks as earlier prunes left them.
fn beginnings() -> Vec<World> {
    let mut worlds = Vec::new();
    for (old, undelete) in [(Old::Deleted, true), (Old::Deleted, false), (Old::Purged, false)] {
        for marks in [&[][..], &[(0, X)], &[(X, 0)], &[(X, 0), (X, 0)]] {
            if old == Old::Deleted && marks.iter().any(|(marked, _)| *marked != 0) {
                continue;
            }
            for old_listed in [true, false] {
                if old == Old::Deleted && !old_listed {
                    continue;
                }
                let mut world = World { present: X, indexed: X, old_listed, old, undelete, ..World::default() };
                for (i, mark) in marks.iter().enumerate() {
                    world.marks[i + 1] = *mark;
                }
                world.epoch = marks.len() as u8;
                worlds.push(world);
            }
        }
    }
    // A backup that found X before it was marked.
    let mut world = World { present: X, indexed: X, old_listed: true, old: Old::Purged, epoch: 1, ..World::default() };
    world.marks[1] = (X, 0);
    world.backups[0] = Backup { at: At::Upload, chunk_in: X, ..Backup::default() };
    worlds.push(world);
    worlds
}

/// Walks every interleaving of so many backups and prunes. Gives a broken world, if there is one, and how many worlds were seen.
fn walk(backups: usize, prunes: usize, broken: Broken) -> (Option<World>, usize) {
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    for mut world in beginnings() {
        for backup in &mut world.backups[backups..] {
            backup.at = At::End;
        }
        for prune in &mut world.prunes[prunes..] {
            prune.at = At::End;
        }
        world.prunes.sort_unstable();
        if seen.insert(world) {
            queue.push_back(world);
        }
    }
    let mut next = Vec::new();
    while let Some(world) = queue.pop_front() {
        if world.is_broken() {
            return (Some(world), seen.len());
        }
        world.next(broken, &mut next);
        for world in next.drain(..) {
            if seen.insert(world) {
                queue.push_back(world);
            }
        }
    }
    (None, seen.len())
}

#[test]
fn no_interleaving_breaks_a_point() {
    let sizes: &[(usize, usize)] = if vaultferry_tests::heavy() { &[(1, 2), (2, 2), (1, 3)] } else { &[(1, 2)] };
    for (backups, prunes) in sizes {
        let (found, worlds) = walk(*backups, *prunes, Broken::Nothing);
        vaultferry_tests::measured(&format!("{worlds} worlds of {backups} backups and {prunes} prunes"));
        assert_eq!(found, None);
        assert!(worlds > 20_000, "{worlds}");
    }
}

#[test]
fn every_rule_is_needed() {
    for (broken, backups, prunes) in [
        (Broken::CheckBeforeRecord, 1, 2),
        (Broken::WriterUsesMarked, 1, 1),
        (Broken::CommitIgnoresMark, 1, 2),
        (Broken::CommitAfterTwoPrunes, 1, 2),
        (Broken::DeletesAtOnce, 1, 1),
        (Broken::RecordsBeforeMarks, 1, 2),
        (Broken::PacksBeforeIndex, 1, 1),
        (Broken::PurgeDoesNotLook, 1, 2),
        (Broken::DoomIsForgotten, 2, 2),
    ] {
        // Millions of worlds lie before the one that needs two backups.
        if backups > 1 && !vaultferry_tests::heavy() {
            continue;
        }
        let (found, worlds) = walk(backups, prunes, broken);
        assert!(found.is_some(), "without this rule nothing is seen to break: {broken:?} in {worlds} worlds");
    }
}
