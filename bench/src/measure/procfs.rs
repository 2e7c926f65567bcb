//! What `/proc` says about CPU and process trees.

use std::collections::BTreeMap;
use std::fs;

/// Linux counts CPU for user space in ticks of 1/100 s on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at all processes.
#[derive(Debug)]
pub(super) struct Processes {
    all: BTreeMap<i32, Process>,
}

#[derive(Debug)]
struct Process {
    parent: i32,
    name: String,
    /// CPU ticks of itself.
    ticks: u64,
    /// CPU ticks of its descendants that have ended and were waited for.
    reaped: u64,
}

impl Processes {
    pub(super) fn now() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok());
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Self { all: pids.filter_map(|pid| Some((pid, read(pid)?))).collect() }
    }

    /// The process and all that descend from it; nothing when it is gone.
    pub(super) fn below(&self, root: i32) -> Vec<i32> {
        let mut found: Vec<i32> = self.all.contains_key(&root).then_some(root).into_iter().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            found.extend(self.all.iter().filter(|(_, process)| process.parent == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        found
    }

    /// CPU seconds of the process and all that descend or descended from it.
    pub(super) fn cpu_below(&self, root: i32) -> f64 {
        let processes = self.below(root).into_iter().filter_map(|pid| self.all.get(&pid));
        processes.map(|process| process.ticks + process.reaped).sum::<u64>() as f64 / TICKS_PER_SECOND
    }

    /// CPU seconds of this program, and of its children that have ended.
    pub(super) fn own(&self) -> (f64, f64) {
        let own = self.all.get(&(std::process::id() as i32));
        own.map_or((0.0, 0.0), |own| (own.ticks as f64 / TICKS_PER_SECOND, own.reaped as f64 / TICKS_PER_SECOND))
    }

    /// A plugin process is called so; every other by its program's name.
    pub(super) fn name(&self, pid: i32) -> Option<String> {
        let name = &self.all.get(&pid)?.name;
        if !name.contains("vaultferry") {
            return Some(name.clone());
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_plugin = command.split(|byte| *byte == 0).nth(1) == Some(b"plugin");
        Some(if is_plugin { "plugin" } else { "command" }.to_owned())
    }
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    // proc(5): the state is field 3, the parent 4, utime and stime 14 and 15, cutime and cstime 16 and 17.
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        name,
        ticks: number(14)? + number(15)?,
        reaped: number(16)? + number(17)?,
    })
}

/// CPU seconds that the machine was busy, and those that its hypervisor took.
pub(super) fn machine() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let of = |index: usize| ticks.get(index).copied().unwrap_or(0) as f64 / TICKS_PER_SECOND;
    // user, nice, system, idle, iowait, irq, softirq, steal; the guests' time after them is in user already.
    (of(0) + of(1) + of(2) + of(5) + of(6), of(7))
}
