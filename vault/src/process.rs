//! Processes that can be found again: which one it was, and whether it is surely gone.
//!
//! A number alone names nobody: numbers are used again, and containers have numbers of their own. So a process is told by the machine's boot,
//! the space of numbers that it lives in, its number and its start. Only Linux tells these; elsewhere nothing is known of any process.

use serde::{Deserialize, Serialize};

/// One process, and never another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Random, made anew by the machine at each of its starts.
    boot: String,
    /// Where its number counts: each container has its own.
    namespace: String,
    pid: u32,
    /// Clock ticks since the boot.
    start: u64,
}

impl Process {
    /// This process. `None` where the system does not tell all of it.
    pub fn this() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// The process of that number. `None` when there is none, or the system does not tell all of it.
    pub fn of(pid: u32) -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned();
        Some(Self { boot, namespace, pid, start: start_time(pid)? })
    }

    /// True when it is proven that the process has ended: it lived where this one lives, since the same boot, and is not there. False when it
    /// lives, and whenever that cannot be known.
    pub fn is_surely_dead(&self) -> bool {
        let Some(this) = Self::this() else { return false };
        if (&this.boot, &this.namespace) != (&self.boot, &self.namespace) {
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => Stat::parse(&stat).is_some_and(|stat| stat.has_ended || stat.start != self.start),
            // Where other users' processes are hidden, this one may be hidden, too; the first process is another user's mostly.
            Err(error) => {
                error.kind() == std::io::ErrorKind::NotFound && std::fs::read_to_string("/proc/1/stat").is_ok()
            }
        }
    }
}

/// When the process started, in clock ticks since the machine's boot. `None` when there is no such process, or the system does not tell.
pub fn start_time(pid: u32) -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    Some(Stat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?.start)
}

/// Of a process, as proc(5) has it.
struct Stat {
    /// Only its number is left, until its parent asks how it ended.
    has_ended: bool,
    start: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in parentheses, and may hold anything. The third is the state, the 22nd the start.
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let has_ended = matches!(fields.next()?, "Z" | "X");
        Some(Self { has_ended, start: fields.nth(18)?.parse().ok()? })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_dead_when_that_is_proven_and_not_before() {
        let this = Process::this().expect("Linux tells");
        assert!(!this.is_surely_dead());
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = Process::of(child.id()).expect("it runs");
        assert!(!process.is_surely_dead());
        // Its number belongs to another one now.
        assert!(Process { start: process.start - 1, ..process.clone() }.is_surely_dead());
        child.kill().expect("killed");
        let begun = std::time::Instant::now();
        while !process.is_surely_dead() {
            assert!(begun.elapsed().as_secs() < 60, "it has ended, though nobody has asked how");
            std::thread::yield_now();
        }
        assert_eq!(start_time(child.id()), Some(process.start), "its number is not free yet");
        child.wait().expect("gone");
        assert!(process.is_surely_dead());
        // Nothing is known of other machines, other starts of this one, and other containers.
        assert!(!Process { boot: "another".to_owned(), ..process.clone() }.is_surely_dead());
        assert!(!Process { namespace: "pid:[1]".to_owned(), ..process }.is_surely_dead());
    }

    #[test]
    fn names_with_anything_in_them_are_read() {
        let text = "17 (a) Z (b) S 1 17 17 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4711 8192 100";
        let stat = Stat::parse(text).expect("it has all fields");
        assert_eq!((stat.has_ended, stat.start), (false, 4711));
        assert!(Stat::parse(&text.replace(" S ", " Z ")).expect("fields").has_ended);
        assert!(Stat::parse("17 (x) S 1").is_none());
    }
}
