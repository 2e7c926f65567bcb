//! Writing a new file, past the page cache when it is large.
//!
//! What a backup or a restore leaves in the page cache pushes the source's own pages out of it, on the machine that must not be hurt; and
//! copying the bytes into fresh pages costs about a tenth of a backup's processor time, and most of a restore's. What cannot be written
//! past the cache (file systems without O_DIRECT, other systems than Linux) is written through it.

use std::fs::File;
use std::io::{self, Write as _};

/// Files below this size are written through the cache: they are few bytes, and soon read again.
const LARGE: usize = 1 << 20;
/// Every usual disk takes bytes in units of this size, from memory that is aligned to it.
const BLOCK: usize = 4 << 10;
/// Bytes of one write: enough to keep a disk busy, and little memory beside the packs.
const PIECE: usize = 1 << 20;

/// Writes all of `body` to the new, empty `file`, and returns it.
pub(super) fn write(mut file: File, body: &[u8]) -> io::Result<File> {
    if body.len() < LARGE {
        file.write_all(body)?;
        return Ok(file);
    }
    let mut writer = Writer::new(file);
    writer.write(body)?;
    writer.finish()
}

/// A new, empty file, written from its beginning to its end. All calls block. After an error the file's content is unknown.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    way: Way,
    /// What was not written yet: less than [`PIECE`].
    gathered: Aligned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing was written yet.
    Undecided,
    PastTheCache,
    ThroughTheCache,
}

/// Memory for one piece, aligned to blocks.
#[derive(Debug, Default)]
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Takes as much of `bytes` as there is room for, and returns the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.memory.is_empty() {
            self.memory = vec![0; PIECE + BLOCK];
            self.start = self.memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        }
        let (taken, rest) = bytes.split_at(bytes.len().min(PIECE - self.length));
        let from = self.start + self.length;
        self.memory[from..from + taken.len()].copy_from_slice(taken);
        self.length += taken.len();
        rest
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl Writer {
    pub(crate) fn new(file: File) -> Self {
        Self { file, way: Way::Undecided, gathered: Aligned::default() }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.way == Way::ThroughTheCache {
                return self.file.write_all(bytes);
            }
            bytes = self.gathered.fill(bytes);
            if self.gathered.length == PIECE {
                self.write_gathered()?;
            }
        }
        Ok(())
    }

    /// Writes what is left, and returns the file: not yet synced, and again in the usual mode.
    pub(crate) fn finish(mut self) -> io::Result<File> {
        if self.way == Way::Undecided {
            // Less than a piece in all.
            self.way = Way::ThroughTheCache;
        }
        self.write_gathered()?;
        if self.way == Way::PastTheCache {
            past_the_cache(&self.file, false)?;
        }
        Ok(self.file)
    }

    fn write_gathered(&mut self) -> io::Result<()> {
        if self.way == Way::Undecided {
            let possible = past_the_cache(&self.file, true).is_ok();
            self.way = if possible { Way::PastTheCache } else { Way::ThroughTheCache };
        }
        let mut left = self.gathered.bytes();
        while self.way == Way::PastTheCache && left.len() >= BLOCK {
            match self.file.write(&left[..left.len() / BLOCK * BLOCK]) {
                Ok(written) if written % BLOCK == 0 && written > 0 => left = &left[written..],
                // Something ends in the middle of a block, a full disk for one: the usual way says what it is.
                Ok(written) => {
                    left = &left[written..];
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file system wants larger blocks.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                Err(error) => return Err(error),
            }
        }
        if !left.is_empty() {
            // The file's end, or a file system that does not take such writes after all.
            if self.way == Way::PastTheCache {
                past_the_cache(&self.file, false)?;
                self.way = Way::ThroughTheCache;
            }
            self.file.write_all(left)?;
        }
        self.gathered.length = 0;
        Ok(())
    }
}

/// Sets or takes back the file's O_DIRECT.
#[cfg(target_os = "linux")]
fn past_the_cache(file: &File, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, on);
    fcntl(file, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn past_the_cache(_file: &File, _on: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(mut file: File) -> Vec<u8> {
        let mut read = Vec::new();
        io::Seek::rewind(&mut file).expect("rewound");
        io::Read::read_to_end(&mut file, &mut read).expect("read");
        read
    }

    #[test]
    fn every_length_is_written_whole() {
        let body: Vec<u8> = (0..LARGE * 2 + 8192).map(|i| ((i * i) >> 7) as u8).collect();
        for folder in [std::env::temp_dir(), "/dev/shm".into()] {
            for length in [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, LARGE + 4096, 2 * LARGE, body.len()] {
                let Ok(file) = tempfile::tempfile_in(&folder) else { continue };
                let file = write(file, &body[..length]).expect("written");
                assert!(content(file) == body[..length], "{length} bytes in {}", folder.display());
            }
        }
    }

    #[test]
    fn pieces_of_any_size_become_one_file() {
        let body: Vec<u8> = (0..3 * PIECE + 4321).map(|i| ((i * i) >> 9) as u8).collect();
        for piece in [700, BLOCK, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5] {
            let mut writer = Writer::new(tempfile::tempfile().expect("tempfile"));
            for piece in body.chunks(piece) {
                writer.write(piece).expect("written");
            }
            assert!(content(writer.finish().expect("finished")) == body, "pieces of {piece} bytes");
        }
    }
}
