//! What a failure to log in, to query or to dump means for the user.

use tokio_postgres::Error;
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};

/// How PgBouncer and its like refuse a client that begins with a parameter that they do not know.
const STARTUP_REFUSED: &str = "unsupported startup parameter";

/// How a standby says that it cancelled whoever was in the way of replication: "canceling statement due to conflict with recovery",
/// "terminating connection due to conflict with recovery".
const CONFLICT: &str = "conflict with recovery";

/// How rustls says that the other side gave up for a reason of its own.
const REFUSED_IN_TLS: &str = "received fatal alert";

/// The kind of an error of `tokio-postgres`, which tells it by its text only; the tests below hold the texts.
fn is_kind(error: &Error, text: &str) -> bool {
    error.to_string() == text
}

/// TLS did not come about.
pub(super) fn is_tls(error: &Error) -> bool {
    is_kind(error, "error performing TLS handshake")
}

/// The server's pg_hba.conf does not let us in this way.
pub(super) fn is_refused(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code() == "28000")
}

/// The problem that the user sees. `server` is host and port; `otherwise` is for errors that have no reason of their own.
pub fn classify(error: &Error, server: &str, otherwise: Reason) -> Problem {
    if let Some(database_error) = error.as_db_error() {
        let mut message = format!("{server}: {}", database_error.message());
        for more in [database_error.detail(), database_error.hint()].into_iter().flatten() {
            message.push_str(". ");
            message.push_str(more);
        }
        let reason = match database_error.message() {
            text if text.contains(STARTUP_REFUSED) => Reason::PoolerUnsupported,
            text if text.contains(CONFLICT) => Reason::ReplicaConflict,
            _ => state_reason(database_error.code().code(), otherwise),
        };
        return Problem::new(reason, message);
    }
    if is_tls(error) {
        return Problem::new(Reason::TlsFailed, format!("{server}: {}", chain(error)));
    }
    if is_kind(error, "invalid configuration") || is_kind(error, "authentication error") {
        let detail = match chain(error) {
            text if text.ends_with("password missing") => {
                "the server asks for a password, and none was named".to_owned()
            }
            text => text,
        };
        return Problem::new(Reason::UserErrorDBUserAuthFailed, format!("{server}: {detail}"));
    }
    if is_kind(error, "error connecting to server") || is_kind(error, "timeout waiting for server") {
        let message = format!("{server} cannot be reached: {}", chain(error));
        return Problem::new(Reason::UserErrorMissingNetworkSecurityPermissions, message);
    }
    // TLS 1.3 tells a client that its certificate is refused only when it reads its first answer.
    if is_kind(error, "error communicating with the server") && chain(error).contains(REFUSED_IN_TLS) {
        let problem = Problem::new(Reason::TlsFailed, format!("{server} refuses our certificate: {}", chain(error)));
        return problem.with_fix(
            "Its authority must be in the server's ssl_ca_file, and it must not have expired: openssl x509 -noout -issuer -enddate -in FILE.",
        );
    }
    if error.is_closed() || is_kind(error, "error communicating with the server") {
        return Problem::new(Reason::UserErrorServerConnectionClosed, format!("{server}: {}", chain(error)));
    }
    Problem::new(otherwise, format!("{server}: {}", chain(error)))
}

/// The reason for an SQLSTATE.
fn state_reason(state: &str, otherwise: Reason) -> Reason {
    match state {
        "28P01" | "28000" => Reason::UserErrorDBUserAuthFailed,
        "3D000" => Reason::UserErrorDBNotFound,
        "42501" => Reason::UserErrorMissingDBPermissions,
        "42P04" => Reason::UserErrorDatabaseNameAlreadyInUse,
        // A statement that was prepared is not there, or another one is: its session is not the one that it was.
        "26000" | "42P05" => Reason::PoolerUnsupported,
        // Too many connections, shut down by the administrator, crashed, starting up.
        "53300" | "57P01" | "57P02" | "57P03" => Reason::UserErrorServerConnectionClosed,
        other if other.starts_with("08") => Reason::UserErrorServerConnectionClosed,
        _ => otherwise,
    }
}

/// The reason that pg_dump's or pg_restore's last words give away, or `otherwise`. The words are English: the children get LC_MESSAGES=C.
pub fn words_reason(words: &str, otherwise: Reason) -> Reason {
    let says = |text: &&str| words.contains(*text);
    // Before the others: its second form ends the connection, too.
    if says(&CONFLICT) {
        return Reason::ReplicaConflict;
    }
    // pg_dump has its locks waited for by a statement timeout, which it takes away again afterwards.
    if says(&"due to lock timeout") || (says(&"due to statement timeout") && says(&"LOCK TABLE")) {
        return Reason::LockTimeout;
    }
    if says(&"increase max_locks_per_transaction") || says(&"increase \"max_locks_per_transaction\"") {
        return Reason::TooFewLocks;
    }
    if says(&"would be affected by row-level security") {
        return Reason::RowSecurityHidesRows;
    }
    if says(&STARTUP_REFUSED) {
        return Reason::PoolerUnsupported;
    }
    let closed = [
        "server closed the connection",
        "terminating connection",
        "connection to server was lost",
        "no connection to the server",
        "could not receive data from server",
        "could not send data to server",
        "SSL connection has been closed unexpectedly",
        "SSL SYSCALL error",
        "the database system is shutting down",
    ];
    if closed.iter().any(says) {
        return Reason::UserErrorServerConnectionClosed;
    }
    let forbidden = [
        "permission denied for",
        "must be owner of",
        "must be member of role",
        "must be able to SET ROLE",
        "must be superuser",
    ];
    if forbidden.iter().any(says) {
        return Reason::UserErrorMissingDBPermissions;
    }
    if says(&"server version mismatch") {
        return Reason::ClientTooOld;
    }
    // Our own login came about a moment before: what it depends on has changed since.
    let refused =
        ["password authentication failed for user", "no pg_hba.conf entry for", "pg_hba.conf rejects connection"];
    if refused.iter().any(says) {
        return Reason::UserErrorDBUserAuthFailed;
    }
    let tls = ["SSL error: certificate verify failed", "does not match host name", "server does not support SSL"];
    if tls.iter().any(says) {
        return Reason::TlsFailed;
    }
    otherwise
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use vaultferry_plugin_sdk::Source;

    use super::*;
    use crate::connection::{Server, is_azure};
    use crate::uri::Host;

    /// What a server says that answers every connection's first bytes with `answers` in turn, and hangs up.
    async fn problem_with(answers: &'static [&'static [u8]], parameters: &str) -> Problem {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in answers {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(answer).await;
                }
            }
        });
        let uri = format!("postgres://u@127.0.0.1:{port}/d?{parameters}");
        let server = Server::new(&Source { uri, credential: None }, None).unwrap();
        let problem = server.connect(&CancellationToken::new()).await.unwrap_err();
        assert!(problem.message.contains(&format!("127.0.0.1:{port}")), "{problem}");
        problem
    }

    #[tokio::test]
    async fn states_of_the_server_become_reasons() {
        let cases: [(&'static [&'static [u8]], Reason); 4] = [
            (&[b"E\0\0\0\x17SFATAL\0C28P01\0Mno\0\0"], Reason::UserErrorDBUserAuthFailed),
            (&[b"E\0\0\0\x17SFATAL\0C3D000\0Mno\0\0"], Reason::UserErrorDBNotFound),
            (&[b"E\0\0\0\x17SFATAL\0C42501\0Mno\0\0"], Reason::UserErrorMissingDBPermissions),
            (&[b"E\0\0\0\x17SFATAL\0C57P03\0Mno\0\0"], Reason::UserErrorServerConnectionClosed),
        ];
        for (answers, reason) in cases {
            assert_eq!(problem_with(answers, "sslmode=disable").await.reason, reason);
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_a_missing_password_and_a_hang_up_are_told_apart() {
        assert_eq!(problem_with(&[b"N"], "sslmode=require").await.reason, Reason::TlsFailed);
        assert_eq!(problem_with(&[b"S", b"no TLS"], "sslmode=require").await.reason, Reason::TlsFailed);
        let clear_text_password: &[&[u8]] = &[b"R\0\0\0\x08\0\0\0\x03"];
        let problem = problem_with(clear_text_password, "sslmode=disable").await;
        assert_eq!(problem.reason, Reason::UserErrorDBUserAuthFailed);
        assert!(problem.message.ends_with("asks for a password, and none was named"), "{problem}");
        assert_eq!(problem_with(&[b""], "sslmode=disable").await.reason, Reason::UserErrorServerConnectionClosed);
    }

    #[tokio::test]
    async fn who_is_let_in_from_nowhere_is_told_where_that_is_said() {
        let problem = problem_with(&[b"E\0\0\0\x29SFATAL\0C28000\0Mno pg_hba.conf entry\0\0"], "sslmode=disable").await;
        assert_eq!(problem.reason, Reason::UserErrorDBUserAuthFailed, "{problem}");
        assert!(problem.fix.contains("hostssl") && problem.fix.contains("pg_reload_conf()"), "{}", problem.fix);
        let host = |name: &str| Host::Name(name.to_owned());
        assert!(is_azure(&host("shop.postgres.database.azure.com")));
        assert!(is_azure(&host("shop.postgres.database.chinacloudapi.cn")));
        assert!(!is_azure(&host("azure.com")) && !is_azure(&Host::Socket("/tmp/x.postgres.database.y".to_owned())));
    }

    #[tokio::test]
    async fn nobody_there_is_a_matter_of_the_network() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        for host in [format!("127.0.0.1:{port}"), "no-such-host.invalid:5432".to_owned()] {
            let source = Source { uri: format!("postgres://u@{host}/d"), credential: None };
            let server = Server::new(&source, None).unwrap();
            let problem = server.connect(&CancellationToken::new()).await.unwrap_err();
            assert_eq!(problem.reason, Reason::UserErrorMissingNetworkSecurityPermissions, "{problem}");
            assert!(problem.message.contains(&host), "{problem}");
        }
    }

    #[test]
    fn last_words_give_reasons_away() {
        let closed = "pg_dump: error: Dumping the contents of table \"a\" failed: PQgetResult() failed.\n\
                      pg_dump: detail: Error message from server: server closed the connection unexpectedly";
        let cases = [
            (closed, Reason::UserErrorServerConnectionClosed),
            ("FATAL:  terminating connection due to administrator command", Reason::UserErrorServerConnectionClosed),
            (
                "pg_dump: error: query failed: ERROR:  permission denied for table t",
                Reason::UserErrorMissingDBPermissions,
            ),
            ("ERROR:  must be member of role \"postgres\"", Reason::UserErrorMissingDBPermissions),
            ("pg_dump: error: aborting because of server version mismatch", Reason::ClientTooOld),
            (
                "pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout\n\
                 pg_dump: detail: Query was: LOCK TABLE public.sales IN ACCESS SHARE MODE",
                Reason::LockTimeout,
            ),
            ("ERROR:  canceling statement due to statement timeout", Reason::DumpFailed),
            (
                "pg_dump: detail: Error message from server: FATAL:  terminating connection due to conflict with recovery",
                Reason::ReplicaConflict,
            ),
            (
                "pg_dump: error: query failed: ERROR:  query would be affected by row-level security policy for table \"t\"",
                Reason::RowSecurityHidesRows,
            ),
            ("FATAL:  unsupported startup parameter: options", Reason::PoolerUnsupported),
            (
                "pg_dump: error: query failed: ERROR:  out of shared memory\n\
                 HINT:  You might need to increase max_locks_per_transaction.",
                Reason::TooFewLocks,
            ),
            ("HINT:  You might need to increase \"max_locks_per_transaction\".", Reason::TooFewLocks),
            (
                "pg_dump: error: connection to server at \"h\" failed: FATAL:  password authentication failed for user \"u\"",
                Reason::UserErrorDBUserAuthFailed,
            ),
            (
                "pg_dump: error: connection to server at \"h\" failed: SSL error: certificate verify failed",
                Reason::TlsFailed,
            ),
            ("pg_dump: error: something else", Reason::DumpFailed),
        ];
        for (words, reason) in cases {
            assert_eq!(words_reason(words, Reason::DumpFailed), reason, "{words}");
        }
    }
}
