//! A plugin is the leader of a session, and so of a process group: everything that it starts can be killed with it, and Linux, where it groups
//! processes by session (`sched_autogroup_enabled`), weighs it as one against others, by a niceness that it sets itself.
#![allow(unsafe_code)]

use std::io;

/// Makes the child that will be started a session's leader. It then has no terminal either: a Ctrl-C is the agent's, which ends its plugins in
/// order.
pub(super) fn of_its_own(command: &mut tokio::process::Command) {
    let before_exec = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes one system call (setsid), allocates nothing,
    // takes no lock, and its error is a plain number.
    unsafe {
        command.pre_exec(before_exec);
    }
}
