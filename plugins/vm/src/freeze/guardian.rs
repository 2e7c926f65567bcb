//! A process that does nothing but see to it that a freeze ends. There are two for each freeze; they watch each other, the helper, the
//! caller and the clock, and on any trouble each of them kills the helper and thaws what it froze ([`super::role::rescue`]).

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use super::board::Cause;
use super::record;
use super::role::{self, Role};
use super::sys;

/// Runs the role to its end. The argument is the record's path.
pub(super) fn run(argument: Option<&OsStr>) -> ExitCode {
    let record = role::record_path(argument);
    let Some(role) = Role::prepare(true) else { return ExitCode::FAILURE };
    let is_thawed = match watch(&role) {
        None => role.board.is_thawed(),
        Some(cause) => {
            role.board.give_up(cause);
            role::rescue(&role.board, role.watched[0].as_fd(), &role.mounts)
        }
    };
    if !is_thawed {
        // The record stays for the next start.
        return ExitCode::FAILURE;
    }
    if let Some(record) = record {
        let _ = record::remove(record);
    }
    let [caller_ended, ..] = role.wait();
    if caller_ended {
        // Nobody is left to reap a guardian that is stopped, and it would keep the file systems from being unmounted.
        sys::kill(role.watched[1].as_fd());
    }
    ExitCode::SUCCESS
}

/// Until the freeze is over (`None`), or in trouble.
fn watch(role: &Role) -> Option<Cause> {
    loop {
        let [caller, helper, other] = role.wait();
        // Whoever ends the freeze ends afterwards, so this must be asked after having waited.
        if role.board.is_ended() {
            return None;
        }
        if helper {
            return Some(Cause::HelperEnded);
        }
        if caller {
            // It never says anything to a guardian: this is its end.
            return Some(Cause::CallerEnded);
        }
        if other {
            return Some(Cause::GuardianEnded);
        }
        if let Some(cause) = role.board.lateness(sys::now_ns()) {
            return Some(cause);
        }
    }
}
