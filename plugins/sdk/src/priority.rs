//! Backups let the machine's own work go first.
//!
//! A backup often runs where its source does. A process of lower priority gets what others leave: where the processors suffice for both it
//! loses nothing, and whoever wakes up beside it, the source's server or `pg_dump`, does not wait for a piece of compressing to end.
//! Restores keep their priority: somebody waits for them.
//!
//! Linux compares nicenesses within a session only, where it groups processes by session (`sched_autogroup_enabled`, the usual setting
//! outside of containers and slices with limits of their own): so a session of ours as a whole is made nice too. Decision 0051 has what a
//! source gains by it.
#![cfg_attr(target_os = "linux", allow(unsafe_code))]

/// On Linux's scale, where 19 is the lowest priority. Beside busy threads of usual priority, one of this gets a tenth of a processor: a dump,
/// which holds a transaction open, is slowed down on a machine that is busy for hours, and not stopped.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Lowers this process's priority: all its threads, those to come, and its children. A priority that is lower already stays. It cannot be taken
/// back, so a process that calls it does nothing else afterwards. Best effort; on other systems than Linux it does nothing.
pub fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        linux::lower_all(NICENESS);
        // Beside the work, as it may have to wait. Where no thread can be made there is none to wait for.
        let lower = || linux::lower_session(NICENESS);
        if let Err(error) = std::thread::Builder::new().name("priority".to_owned()).spawn(lower) {
            tracing::debug!(%error, "the session keeps its priority");
        }
    }
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

    /// Linux lets users who are not root set the niceness of one session in a tenth of a second, of all sessions together, and refuses the
    /// others (EAGAIN): of backups that a schedule begins at the same moment, all but one. So many tries, and so long between two.
    const SESSION_TRIES: u32 = 200;
    const SESSION_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

    /// Where a process reads and sets the niceness of its session.
    pub(super) const SESSION: &str = "/proc/self/autogroup";

    /// Lowers the priority of the session that this process leads, beside other sessions. One that belongs to somebody else too is left alone.
    pub(super) fn lower_session(niceness: i32) {
        let leads = nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::Pid::this());
        let Some(now) = session_niceness().filter(|now| leads && *now < niceness) else { return };
        for tries_left in (0..SESSION_TRIES).rev() {
            match std::fs::write(SESSION, niceness.to_string()) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries_left > 0 => {
                    std::thread::sleep(SESSION_PAUSE);
                }
                Err(error) => {
                    tracing::debug!(now, %error, "the session keeps its priority");
                    return;
                }
            }
        }
    }

    /// `None` where sessions have none.
    pub(super) fn session_niceness() -> Option<i32> {
        std::fs::read_to_string(SESSION).ok()?.trim().rsplit(' ').next()?.parse().ok()
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
        fn only_a_session_of_its_own_becomes_nice() {
            const CHILD: &str = "VAULTFERRY_TEST_SESSION";
            let Some(kind) = std::env::var_os(CHILD) else {
                if session_niceness().is_none() {
                    println!("skipped: sessions have no niceness here ({SESSION})");
                    return;
                }
                for (kind, program) in [("own", Some("setsid")), ("shared", None)] {
                    let own = std::env::current_exe().expect("a test");
                    let mut test = match program {
                        Some(program) => std::process::Command::new(program),
                        None => std::process::Command::new(&own),
                    };
                    if program.is_some() {
                        test.arg("--wait").arg(&own);
                    }
                    test.args(["--exact", "priority::linux::tests::only_a_session_of_its_own_becomes_nice"]);
                    let status = test.env(CHILD, kind).status().expect("it runs");
                    assert!(status.success(), "{kind}");
                }
                return;
            };
            let before = session_niceness().expect("it was there");
            let lower = (before + 3).min(19);
            lower_session(lower);
            assert_eq!(session_niceness(), Some(if kind == "own" { lower } else { before }));
            // Never higher again, also where we might.
            lower_session(before);
            assert_eq!(session_niceness(), Some(if kind == "own" { lower } else { before }));
        }

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
