use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;
use crate::client::Major;

const HEAD: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict a1B2\n\n-- Dumped from database version 15.18\n\n\
                    SET statement_timeout = 0;\nSET transaction_timeout = 0;\nSET client_encoding = 'UTF8';\n";
const REST: &str = "SELECT pg_catalog.set_config('search_path', '', false);\nCOPY public.a (t) FROM stdin;\n\
                    SET transaction_timeout = 0;\n\\.\n";

/// Gives its bytes out in pieces of one size.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let all = self.0;
        let (now, later) = all.split_at(self.1.min(all.len()).min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

async fn passed(script: &str, piece: usize) -> String {
    let mut output = Vec::new();
    pass_on(Pieces(script.as_bytes(), piece), &mut output).await.unwrap();
    String::from_utf8(output).unwrap()
}

#[tokio::test]
async fn exactly_the_heads_line_is_dropped_however_it_comes() {
    let script = format!("{HEAD}{REST}");
    let expected = format!("{}{REST}", HEAD.replace("SET transaction_timeout = 0;\n", ""));
    for piece in [1, 2, 3, 7, 64, 4096] {
        assert_eq!(passed(&script, piece).await, expected, "in pieces of {piece}");
    }
}

#[tokio::test]
async fn everything_else_stays() {
    let without = HEAD.replace("SET transaction_timeout = 0;\n", "");
    let other = HEAD.replace("transaction_timeout = 0", "transaction_timeout = 10");
    for head in [without.as_str(), other.as_str(), "", "-- no end of line"] {
        let script = format!("{head}{REST}");
        assert_eq!(passed(&script, 5).await, script);
    }
    let long = format!("{}SET transaction_timeout = 0;\n", "-- more\n".repeat(HEAD_MAX));
    assert_eq!(passed(&long, 1000).await, long, "so much is no head");
}

#[cfg(unix)]
mod programs {
    use std::os::unix::fs::PermissionsExt as _;

    use vaultferry_plugin_sdk::Source;

    use super::*;
    use crate::client::Program;

    /// How it ends when pg_restore and psql are these scripts, and what psql read.
    async fn end(restore: &str, psql: &str) -> (Result<Ended, child::Error>, String) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, script: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let seen = dir.path().join("seen");
        let restorer = Restorer {
            program: Program { path: write("pg_restore", restore), version: "18.1".to_owned(), major: Major::new(18) },
            arguments: &[],
            psql: Some(write("psql", &psql.replace("SEEN", &seen.display().to_string()))),
        };
        let source = Source { uri: "postgres://u@localhost/d".to_owned(), credential: None };
        let server = Server::new(&source, None).unwrap();
        let mut loader = Loader::start(&restorer, &server, "d", &[], &CancellationToken::new()).await.unwrap();
        let mut stdin = loader.take_stdin().unwrap();
        // A program that ends early breaks the pipe; that is not what is told.
        let _ = stdin.write_all(b"the archive\n").await;
        drop(stdin);
        let ended = loader.finish(&CancellationToken::new()).await;
        (ended, std::fs::read_to_string(seen).unwrap_or_default())
    }

    #[tokio::test]
    async fn both_must_say_that_they_are_done() {
        let (good, psql) = ("printf 'SET transaction_timeout = 0;\\n'; cat", "cat >SEEN");
        let (ended, seen) = end(good, psql).await;
        assert!(ended.unwrap().success());
        assert_eq!(seen, "the archive\n");
        let (ended, seen) = end("head -c 3; echo 'pg_restore: error: broken' >&2; exit 1", psql).await;
        let ended = ended.unwrap();
        assert_eq!((ended.success(), ended.words.as_str()), (false, "pg_restore: error: broken"));
        assert_eq!(seen, "the", "psql saw an end of its input, and was content");
        let (ended, _) = end(good, "cat >/dev/null; echo 'psql:<stdin>:1: ERROR:  no' >&2; exit 3").await;
        let ended = ended.unwrap();
        assert_eq!((ended.how().as_str(), ended.words.as_str()), ("exit status 3", "psql:<stdin>:1: ERROR:  no"));
    }

    #[tokio::test]
    async fn what_both_have_said_is_told() {
        let (ended, _) =
            end("cat; echo 'pg_restore: warning: odd' >&2", "cat >/dev/null; echo 'psql: no' >&2; exit 3").await;
        let ended = ended.unwrap();
        assert_eq!(
            (ended.how().as_str(), ended.words.as_str()),
            ("exit status 3", "psql: no\npg_restore: warning: odd")
        );
        let (ended, _) = end("cat; echo 'pg_restore: no' >&2; exit 1", "cat >/dev/null; echo 'psql: odd' >&2").await;
        let ended = ended.unwrap();
        assert_eq!((ended.how().as_str(), ended.words.as_str()), ("exit status 1", "pg_restore: no\npsql: odd"));
    }

    #[tokio::test]
    async fn a_psql_that_leaves_early_is_not_taken_for_done() {
        let much = "cat >/dev/null; dd if=/dev/zero bs=1000000 count=20 2>/dev/null || exit 0";
        let (ended, _) = end(much, "exit 0").await;
        assert!(ended.is_err() || ended.is_ok_and(|ended| !ended.success()));
    }
}
