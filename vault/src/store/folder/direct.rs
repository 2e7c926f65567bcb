//! Writing a new file, past the page cache when it is large.
//!
//! A backup in the page cache pushes the source's own pages out of it, on the machine that the backup must not hurt; and copying the
//! bytes into fresh pages costs about a tenth of the writer's processor time. What cannot be written past the cache (file systems
//! without O_DIRECT, other systems than Linux) is written through it.

use std::fs::File;
use std::io::{self, Write as _};

/// Files below this size are written through the cache: they are few bytes, and soon read again.
const LARGE: usize = 1 << 20;

/// Writes all of `body` to the new, empty `file`.
pub(super) fn write(file: &mut File, body: &[u8]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let body = if body.len() >= LARGE { linux::write_blocks(file, body)? } else { body };
    file.write_all(body)
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// Every usual disk takes bytes in units of this size, from memory that is aligned to it.
    const BLOCK: usize = 4 << 10;
    /// Bytes of one write: enough to keep a disk busy, and little memory beside the packs.
    const PIECE: usize = 1 << 20;

    /// Writes as many whole blocks past the cache as can be, and returns what is left of `body`.
    pub(super) fn write_blocks<'a>(file: &mut File, body: &'a [u8]) -> io::Result<&'a [u8]> {
        let flags = OFlag::from_bits_retain(fcntl(&*file, FcntlArg::F_GETFL)?);
        if fcntl(&*file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).is_err() {
            return Ok(body);
        }
        let mut memory = vec![0; PIECE + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let aligned = memory.get_mut(start..start + PIECE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut left = body;
        while left.len() >= BLOCK {
            let length = left.len().min(PIECE) / BLOCK * BLOCK;
            aligned[..length].copy_from_slice(&left[..length]);
            match file.write(&aligned[..length]) {
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
        fcntl(&*file, FcntlArg::F_SETFL(flags))?;
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_written_whole() {
        let body: Vec<u8> = (0..LARGE * 2 + 8192).map(|i| ((i * i) >> 7) as u8).collect();
        for folder in [std::env::temp_dir(), "/dev/shm".into()] {
            for length in [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, LARGE + 4096, 2 * LARGE, body.len()] {
                let Ok(mut file) = tempfile::tempfile_in(&folder) else { continue };
                write(&mut file, &body[..length]).expect("written");
                let mut read = Vec::new();
                io::Seek::rewind(&mut file).expect("rewound");
                io::Read::read_to_end(&mut file, &mut read).expect("read");
                assert!(read == body[..length], "{length} bytes in {}", folder.display());
            }
        }
    }
}
