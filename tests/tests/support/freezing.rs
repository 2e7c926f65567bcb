//! What the tests of freezing do beside it: write, freeze, and look how long a write waits.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use vaultferry_tests::binary;
use vaultferry_tests::process::{self, Seen};

use crate::loopfs::LoopFs;

/// As short as it may be.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// What is promised: the deadline and a second.
pub const LIMIT: Duration = Duration::from_secs(2);

/// How long an undisturbed freeze of the matrix is held.
pub const HOLD: Duration = Duration::from_millis(300);

/// Everything of a freeze is gone after this. A process that is stopped before it is ready is waited for the longest, 10 s.
pub const GONE: Duration = Duration::from_secs(30);

/// Writes small pieces to a file system all the time, and knows how long it waited.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    writes: AtomicU64,
    /// When the write that goes on began, in microseconds after `Writer::start`; zero between two.
    began_us: AtomicU64,
    longest_us: AtomicU64,
}

impl Writer {
    /// A byte every 2 ms, to a file in `dir`.
    pub fn start(dir: &Path, epoch: Instant) -> Self {
        let shared = Arc::new(Shared::default());
        let file = File::create(dir.join("written")).expect("make a file to write to");
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !own.stop.load(SeqCst) {
                let began = epoch.elapsed();
                own.began_us.store(micros(began).max(1), SeqCst);
                file.write_all_at(b"x", 0).expect("write a byte");
                own.longest_us.fetch_max(micros(epoch.elapsed() - began), SeqCst);
                own.began_us.store(0, SeqCst);
                own.writes.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// How long the write that goes on has waited.
    pub fn waiting(&self, epoch: Instant) -> Duration {
        match self.shared.began_us.load(SeqCst) {
            0 => Duration::ZERO,
            began => Duration::from_micros(micros(epoch.elapsed()).saturating_sub(began)),
        }
    }

    /// The longest wait since it was asked for before.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, SeqCst))
    }

    pub fn writes(&self) -> u64 {
        self.shared.writes.load(SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("a test is short")
}

/// Keeps a file system busy with what is dirty when a freeze comes.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub fn start(dir: &Path, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("load")).expect("a file");
        let own = Arc::clone(&stop);
        let dir = dir.to_owned();
        let thread = std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            let piece = vec![7_u8; 128 * 1024];
            let mut round = 0_u64;
            while !own.load(SeqCst) {
                // Within 32 MiB: it never fills the file system.
                let place = random.random_range(0..256_u64) * piece.len() as u64;
                file.write_all_at(&piece, place).expect("write a piece");
                // Names come and go, too: that is the journal's work.
                let name = dir.join(format!("name-{}", round % 8));
                std::fs::write(&name, b"x").expect("write a file");
                std::fs::remove_file(&name).expect("remove a file");
                if round.is_multiple_of(32) {
                    file.sync_data().expect("sync");
                }
                round += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Thaws when a test fails, so that its threads and its mounts can go. Made after what it must outlive, so that it is dropped before that.
pub struct Thaws(pub Vec<PathBuf>);

impl Drop for Thaws {
    fn drop(&mut self) {
        for path in &self.0 {
            let mut thaw = Command::new("fsfreeze");
            thaw.arg("--unfreeze").arg(path).stderr(Stdio::null());
            let _ = thaw.status();
        }
    }
}

/// `vaultferry plugin vm-freeze hold`, started.
pub struct Hold {
    pub child: Child,
    pub pid: i32,
    lines: std::sync::mpsc::Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

/// How it ended: its exit code, its last line and what it said on standard error.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub line: String,
    pub errors: String,
}

impl Hold {
    pub fn start(mounts: &[PathBuf], state: &Path, seconds: Duration) -> Self {
        let mut command = process::bound("KILL", binary());
        command.args(["plugin", "vm-freeze", "hold", "--state"]).arg(state);
        for mount in mounts {
            command.arg("--mount").arg(mount);
        }
        command.args(["--seconds", &seconds.as_secs_f64().to_string()]);
        command.args(["--deadline", &DEADLINE.as_secs_f64().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the program");
        let pid = i32::try_from(child.id()).expect("a process id");
        let (tell, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut errors = child.stderr.take().expect("a pipe");
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Self { child, pid, lines, errors: Some(errors) }
    }

    /// True when it is; false when it has ended before.
    pub fn wait_until_frozen(&self) -> bool {
        self.lines.recv_timeout(Duration::from_secs(20)).is_ok_and(|line| line == "frozen")
    }

    /// Those of its processes that do this.
    pub fn roles(&self, role: &str) -> Vec<Seen> {
        let words = format!("vm-freeze {role} ");
        process::tree(self.pid).into_iter().filter(|seen| seen.command.contains(&words)).collect()
    }

    pub fn end(mut self) -> Ended {
        let code = process::exit_code(&mut self.child, GONE).expect("it ends");
        let errors = self.errors.take().map(|thread| thread.join().expect("no panic")).unwrap_or_default();
        // Until its end of the pipe is closed.
        let line = self.lines.iter().last().unwrap_or_default();
        Ended { code, line, errors }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file system, or why there is none: `LoopFs` has said it.
pub fn file_system(kind: &str) -> Option<LoopFs> {
    LoopFs::new(kind, 384)
}

pub fn thaw_command(state: &Path) -> process::Output {
    let mut command = Command::new(binary());
    command.args(["plugin", "vm-freeze", "thaw", "--wait", "10", "--state"]).arg(state);
    process::run(&mut command, b"", Duration::from_secs(30))
}

pub fn records(state: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(state) else { return 0 };
    entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension() == Some("json".as_ref()))).count()
}

/// Unmounts what a test has mounted by itself.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(arguments: &[&str], what: &Path, to: PathBuf) -> Self {
        std::fs::create_dir(&to).expect("make the mount point");
        let mut mount = Command::new("mount");
        process::run(mount.args(arguments).arg(what).arg(&to), b"", Duration::from_secs(20)).success();
        Self(to)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        let _ = unmount.arg("--lazy").arg(&self.0).stderr(Stdio::null()).status();
    }
}
