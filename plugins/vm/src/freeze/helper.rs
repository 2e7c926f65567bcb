//! The process that syncs, freezes and thaws. Between the first freeze and the last thaw it makes nothing but the system calls of freezing,
//! `poll`, `read` and `write` on a socket and reads of the clock: no allocation, no log, no disk.
//!
//! It thaws by itself when the caller says so or goes away, a guardian ends, or the deadline passes. Whoever kills or stops it leaves the
//! rest to the guardians.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::unistd::syncfs;

use super::board::Cause;
use super::role::{FREEZE, FROZEN, REFUSED, Role, SYNC, SYNCED, THAW, THAWED};
use super::sys;

/// Runs the role to its end.
pub(super) fn run() -> ExitCode {
    let Some(role) = Role::prepare(false) else { return ExitCode::FAILURE };
    loop {
        let [caller, first, second] = role.wait();
        if first || second {
            return give_up(&role, Cause::GuardianEnded);
        }
        if caller {
            match command(&role) {
                Some(SYNC) => sync(&role),
                Some(FREEZE) => {
                    if !freeze(&role) {
                        role.say(REFUSED);
                        return ExitCode::FAILURE;
                    }
                    role.say(FROZEN);
                }
                Some(THAW) => {
                    thaw(&role);
                    role.say(THAWED);
                    return ExitCode::SUCCESS;
                }
                Some(_) | None => return give_up(&role, Cause::CallerEnded),
            }
        } else if role.board.is_past_deadline(sys::now_ns()) {
            return give_up(&role, Cause::Deadline);
        }
    }
}

/// The caller's next byte; `None` when it has gone.
fn command(role: &Role) -> Option<u8> {
    let mut byte = [0_u8; 1];
    match (&role.socket).read(&mut byte) {
        Ok(1) => Some(byte[0]),
        Ok(_) | Err(_) => None,
    }
}

/// Before the freeze, so that little is left to write out in it. A file system that fails here fails to freeze, too.
fn sync(role: &Role) {
    let start = sys::now_ns();
    for mount in &role.mounts {
        let _ = syncfs(mount);
    }
    role.board.synced(sys::now_ns().saturating_sub(start));
    role.say(SYNCED);
}

/// False when one could not be frozen; the others are thawed then.
fn freeze(role: &Role) -> bool {
    for (index, mount) in role.mounts.iter().enumerate() {
        role.board.begin(index, sys::now_ns());
        match sys::freeze(mount.as_fd()) {
            Ok(()) => role.board.freeze(index, sys::now_ns()),
            Err(error) => {
                role.board.refuse(index, error as i32);
                thaw(role);
                return false;
            }
        }
    }
    role.board.complete(sys::now_ns());
    true
}

fn give_up(role: &Role, cause: Cause) -> ExitCode {
    role.board.give_up(cause);
    thaw(role);
    ExitCode::FAILURE
}

/// Thaws what was frozen, in reverse. Ends the freeze, unless a file system refuses: then the guardians, who see this process end, ask it again.
fn thaw(role: &Role) {
    for (index, mount) in role.mounts.iter().enumerate().rev() {
        if !role.board.is_to_thaw(index, false) {
            continue;
        }
        match sys::thaw(mount.as_fd()) {
            Ok(()) => role.board.thaw(index, sys::now_ns()),
            Err(Errno::EINVAL) => {
                role.board.lose();
                role.board.thaw(index, sys::now_ns());
            }
            Err(_) => role.board.lose(),
        }
    }
    if role.board.is_thawed() {
        role.board.end();
    }
}
