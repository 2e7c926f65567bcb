//! A hot standby of a throwaway server.

use std::process::Command;

use super::{LIMIT, Server, server_user};
use crate::process;
use crate::scratch::Scratch;

impl Server {
    /// A running hot standby of this server, which is restarted for it: it writes little for replication otherwise. Same superuser, same
    /// password, another port.
    #[track_caller]
    pub fn standby(&mut self) -> Self {
        self.psql("postgres", "alter system set wal_level = 'replica';\nalter system set max_wal_senders = 5;");
        self.restart();
        let scratch = Scratch::new("standby");
        let data_dir = scratch.join("data");
        let mut copy = self.client("pg_basebackup", "postgres");
        // It writes how it logged in here into the standby's configuration; the file with passwords is not for the server's user.
        copy.env_remove("PGPASSFILE").env_remove("PGDATABASE").env("PGPASSWORD", &self.password);
        copy.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--pgdata"])
            .arg(&data_dir);
        process::run(&mut copy, b"", LIMIT).success();
        if let Some(user) = server_user() {
            let mut chown = Command::new("chown");
            chown.arg("-R").arg(format!("{}:{}", user.uid, user.gid)).arg(&data_dir);
            process::run(&mut chown, b"", LIMIT).success();
        }
        let passfile = scratch.write("passfile", "");
        let (bin_dir, client_dir) = (self.bin_dir.clone(), self.client_dir.clone());
        let password = self.password.clone();
        let mut standby =
            Self { scratch, bin_dir, client_dir, port: 0, password, passfile, child: None, _programs: None };
        standby.start_on_free_port();
        standby
    }
}
