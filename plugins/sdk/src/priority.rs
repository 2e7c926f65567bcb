//! Backups let the machine's own work go first.
//!
//! A backup often runs where its source does. A process of lower priority gets what others leave: where the processors suffice for both it
//! loses nothing, and whoever wakes up beside it, the source's server or `pg_dump`, does not wait for a piece of compressing to end.
//! Restores keep their priority: somebody waits for them.
#![cfg_attr(target_os = "linux", allow(unsafe_code))]

/// On Linux's scale, where 19 is the lowest priority. Beside busy threads of usual priority, one of this gets a tenth of a processor: a dump,
/// which holds a transaction open, is slowed down on a machine that is busy for hours, and not stopped.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Lowers this process's priority: all its threads, those to come, and its children. A priority that is lower already stays. It cannot be taken
/// back, so a process that calls it does nothing else afterwards. Best effort; on other systems than Linux it does nothing.
pub fn yield_to_others() {
    #[cfg(target_os = "linux")]
    linux::lower_all(NICENESS);
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::errno::Errno;
    use nix::libc;

    /// Threads that are made while the list is read have their maker's priority, which may be the old one: it is read again until all
    /// have the new one.
    const PASSES: usize = 4;

    pub(super) fn lower_all(niceness: i32) {
        for _ in 0..PASSES {
            let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
            let ids = threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse::<u32>().ok());
            if ids.filter(|id| lower(*id, niceness)).count() == 0 {
                return;
            }
        }
    }

    /// True when the thread had a higher priority, and has this one now.
    fn lower(thread: u32, niceness: i32) -> bool {
        let Some(now) = self::niceness(thread) else { return false };
        if now >= niceness {
            return false;
        }
        // SAFETY: the call takes numbers only. Linux takes a thread's number for that of a process.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, niceness) };
        if let Err(error) = Errno::result(result) {
            tracing::debug!(thread, %error, "a thread keeps its priority");
            return false;
        }
        true
    }

    /// Of a thread; `None` when it is gone.
    pub(super) fn niceness(thread: u32) -> Option<i32> {
        // A result of -1 is a niceness too.
        Errno::clear();
        // SAFETY: the call takes numbers only.
        let niceness = unsafe { libc::getpriority(libc::PRIO_PROCESS, thread) };
        (Errno::last_raw() == 0).then_some(niceness)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// In a process of its own: it cannot be taken back.
        #[test]
        fn all_threads_and_those_to_come_get_the_lower_priority() {
            const CHILD: &str = "VAULTFERRY_TEST_LOWER";
            if std::env::var_os(CHILD).is_none() {
                let name = "priority::linux::tests::all_threads_and_those_to_come_get_the_lower_priority";
                let mut test = std::process::Command::new(std::env::current_exe().expect("a test"));
                let status = test.args(["--exact", name]).env(CHILD, "1").status().expect("it runs");
                assert!(status.success());
                return;
            }
            let own = || nix::unistd::gettid().as_raw().cast_unsigned();
            let (ask, asked) = std::sync::mpsc::channel::<()>();
            let (tell, told) = std::sync::mpsc::channel();
            let early = std::thread::spawn(move || {
                tell.send(()).expect("somebody listens");
                asked.recv().expect("somebody asks");
                niceness(own())
            });
            told.recv().expect("the thread runs");
            let before = niceness(own()).expect("this thread is there");
            let lower = (before + 3).min(19);
            lower_all(lower);
            ask.send(()).expect("the thread listens");
            assert_eq!(early.join().expect("no panic"), Some(lower));
            assert_eq!(std::thread::spawn(move || niceness(own())).join().expect("no panic"), Some(lower));
            // Never higher again, also where we might.
            lower_all(before);
            assert_eq!(niceness(own()), Some(lower));
        }
    }
}
