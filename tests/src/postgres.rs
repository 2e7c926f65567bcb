//! Throwaway PostgreSQL servers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};

use crate::process::{self, Output};
use crate::scratch::Scratch;
use crate::{free_port, percent, random_hex};

mod standby;
pub mod versions;

/// Debian 12's server and client programs.
pub const BIN_DIR: &str = "/usr/lib/postgresql/15/bin";

/// Longest start or stop of a server, and longest statement, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// A server of its own: TCP on 127.0.0.1 and a socket, login by password only (scram-sha-256), superuser `postgres`.
/// Dropping it kills it and removes everything.
#[derive(Debug)]
pub struct Server {
    scratch: Scratch,
    bin_dir: PathBuf,
    client_dir: PathBuf,
    port: u16,
    password: String,
    passfile: PathBuf,
    child: Option<Child>,
    /// A copy of its programs, where it needs one.
    _programs: Option<Scratch>,
}

impl Server {
    /// A running server from [`BIN_DIR`].
    #[track_caller]
    pub fn start() -> Self {
        Self::start_from(Path::new(BIN_DIR))
    }

    /// A running server from another folder of programs, client programs among them.
    #[track_caller]
    pub fn start_from(bin_dir: &Path) -> Self {
        Self::start_with(bin_dir, bin_dir)
    }

    /// A running server from a folder of server programs; [`Server::client`] takes those of another.
    #[track_caller]
    fn start_with(bin_dir: &Path, client_dir: &Path) -> Self {
        assert!(bin_dir.join("initdb").is_file(), "{} has no initdb: run scripts/setup", bin_dir.display());
        let scratch = Scratch::new("pg");
        let password = random_hex(12);
        let pwfile = scratch.write("pwfile", &format!("{password}\n"));
        let data_dir = scratch.join("data");
        fs::create_dir(&data_dir).expect("make the data folder");
        if let Some(user) = server_user() {
            for path in [&pwfile, &data_dir] {
                chown(path, Some(user.uid), Some(user.gid)).expect("give the file to the server's user");
            }
        }
        let mut initdb = as_server_user(&bin_dir.join("initdb"), "KILL");
        initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-A", "scram-sha-256"]);
        initdb.arg("-D").arg(&data_dir).arg(format!("--pwfile={}", pwfile.display()));
        process::run(&mut initdb, b"", LIMIT).success();
        let passfile = scratch.write("passfile", "");
        let (bin_dir, client_dir) = (bin_dir.to_owned(), client_dir.to_owned());
        let mut server =
            Self { scratch, bin_dir, client_dir, port: 0, password, passfile, child: None, _programs: None };
        server.start_on_free_port();
        server
    }

    #[track_caller]
    fn start_on_free_port(&mut self) {
        // Another test may take the port between the search and the start.
        for attempt in 1.. {
            self.port = free_port();
            self.configure();
            match self.try_start() {
                Ok(()) => break,
                Err(log) => assert!(attempt < 5, "the server does not start:\n{log}"),
            }
        }
        let line = format!("127.0.0.1:{}:*:postgres:{}\n", self.port, self.password);
        self.passfile = self.scratch.write("passfile", &line);
    }

    fn configure(&self) {
        let data_dir = self.data_dir();
        let major = fs::read_to_string(data_dir.join("PG_VERSION")).expect("read the data folder's version");
        // Version 10 does not know it.
        let jit = if major.trim() == "10" { "" } else { "jit = off\n" };
        // No durability: these servers live for minutes. Bulk loads skip the WAL with wal_level=minimal.
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = off\nsynchronous_commit = off\n\
             full_page_writes = off\nwal_level = minimal\nmax_wal_senders = 0\nmax_wal_size = 1GB\nshared_buffers = 64MB\n{jit}\
             max_connections = 30\nmax_prepared_transactions = 5\n",
            self.port,
            data_dir.display()
        );
        let path = data_dir.join("conf.d.conf");
        fs::write(&path, settings).expect("write the server's settings");
        if let Some(user) = server_user() {
            chown(&path, Some(user.uid), Some(user.gid)).expect("give the settings to the server's user");
        }
        let main = data_dir.join("postgresql.conf");
        let text = fs::read_to_string(&main).expect("read postgresql.conf");
        if !text.contains("conf.d.conf") {
            fs::write(&main, format!("{text}\ninclude 'conf.d.conf'\n")).expect("write postgresql.conf");
        }
    }

    fn try_start(&mut self) -> Result<(), String> {
        let log_path = self.scratch.join("server.log");
        let log = File::options().create(true).append(true).open(&log_path).expect("open the server's log");
        let mut command = as_server_user(&self.bin_dir.join("postgres"), "QUIT");
        command.arg("-D").arg(self.data_dir()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("start postgres");
        let start = std::time::Instant::now();
        loop {
            if process::exit_code(&mut child, Duration::from_millis(20)).is_some() {
                return Err(fs::read_to_string(&log_path).unwrap_or_default());
            }
            // "ready" is the last line of postmaster.pid when connections are accepted; of a standby it is "standby".
            let state = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
            if ["ready", "standby"].iter().any(|word| state.trim_end().ends_with(word))
                && state.starts_with(&format!("{}\n", child.id()))
            {
                self.child = Some(child);
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                return Err(fs::read_to_string(&log_path).unwrap_or_default());
            }
        }
    }

    /// Its data folder, which holds its socket, too.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A libpq password file for 127.0.0.1 and [`Server::port`], readable by the test's user only.
    pub fn passfile(&self) -> &Path {
        &self.passfile
    }

    /// The same for another port, in a file of its own: for a proxy before the server.
    pub fn passfile_for_port(&self, port: u16) -> PathBuf {
        let line = format!("127.0.0.1:{port}:*:postgres:{}\n", self.password);
        self.scratch.write(&format!("passfile-{port}"), &line)
    }

    /// The same for every host and port: for tests about what is behind them.
    pub fn passfile_for_anything(&self) -> PathBuf {
        self.scratch.write("passfile-anything", &format!("*:*:*:*:{}\n", self.password))
    }

    /// The same for the server's socket, which libpq looks up by its folder or as "localhost".
    pub fn passfile_for_socket(&self) -> PathBuf {
        let (dir, port, password) = (self.data_dir(), self.port, &self.password);
        let line = format!("{}:{port}:*:postgres:{password}\nlocalhost:{port}:*:postgres:{password}\n", dir.display());
        self.scratch.write("passfile-socket", &line)
    }

    /// A source URI by TCP, without a password.
    pub fn uri(&self, database: &str) -> String {
        uri_for(self.port, database)
    }

    /// A source URI by the server's socket.
    pub fn socket_uri(&self, database: &str) -> String {
        let dir = self.data_dir();
        format!("postgres://postgres@/{}?host={}&port={}", percent(database), dir.display(), self.port)
    }

    /// One of PostgreSQL's client programs, set up to log in here.
    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.client_dir.join(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        command.env("PGPASSFILE", &self.passfile).env("PGDATABASE", database).env("PGCONNECT_TIMEOUT", "30");
        command
    }

    /// Runs statements (psql's own commands work too); stops at the first error and gives it back.
    #[track_caller]
    pub fn try_psql(&self, database: &str, sql: &str) -> Output {
        let mut command = self.client("psql", database);
        command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]).env("PGOPTIONS", "-c client_min_messages=warning");
        process::run(&mut command, sql.as_bytes(), LIMIT * 4)
    }

    /// Runs statements that must succeed; the rows as text, columns separated by `|`.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).success().text().trim_end().to_owned()
    }

    /// Makes an empty database.
    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.psql("postgres", &format!("create database {} template template0", quote(name)));
    }

    /// The names of all databases but the server's own three.
    #[track_caller]
    pub fn databases(&self) -> Vec<String> {
        let sql =
            "select datname from pg_database where datname not in ('postgres', 'template0', 'template1') order by 1";
        self.psql("postgres", sql).lines().map(str::to_owned).collect()
    }

    /// How many connections programs like pg_dump and pg_restore have here: all whose name begins with this word.
    #[track_caller]
    pub fn sessions_of(&self, application: &str) -> usize {
        let sql = format!(
            "select count(*) from pg_stat_activity where split_part(application_name, ' ', 1) = '{application}'"
        );
        self.psql("postgres", &sql).parse().expect("a number")
    }

    /// Stops it (clients are thrown out) and starts it again on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.try_start().unwrap_or_else(|log| panic!("the server does not start again:\n{log}"));
    }

    /// Stops it as an administrator would in a hurry; its port refuses connections then.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::end(&mut child, Signal::SIGINT, LIMIT);
        }
    }

    /// SIGKILL for the server and all of its processes at once.
    pub fn kill_hard(&mut self) {
        if let Some(mut child) = self.child.take() {
            let tree = process::tree(child.id() as i32);
            tree.iter().for_each(process::Seen::kill9);
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let tree = process::tree(child.id() as i32);
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGQUIT);
            if process::exit_code(&mut child, Duration::from_secs(10)).is_none() {
                tree.iter().for_each(process::Seen::kill9);
                let _ = child.wait();
            }
        }
    }
}

/// A source URI on 127.0.0.1 for the user `postgres`.
pub fn uri_for(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{}", percent(database))
}

/// An identifier in quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// PostgreSQL refuses to run as root; then it runs as nobody.
fn server_user() -> Option<User> {
    Uid::effective().is_root().then(|| User::from_name("nobody").expect("read the users").expect("nobody exists"))
}

fn as_server_user(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some(user) = server_user() {
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid)).arg("--clear-groups");
    }
    command.arg("--").arg(program).env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}
