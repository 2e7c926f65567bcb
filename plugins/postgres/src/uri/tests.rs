use super::*;

fn parse(text: &str) -> Uri {
    text.parse().unwrap_or_else(|problem| panic!("{text}: {problem}"))
}

fn refused(text: &str) -> String {
    let problem = text.parse::<Uri>().expect_err(text);
    assert_eq!(problem.reason, Reason::InvalidSource, "{text}");
    problem.message
}

#[test]
fn a_server_by_name() {
    let uri = parse("postgres://backup@DB.example.com:5433/shop?sslmode=require");
    assert_eq!(uri.user, "backup");
    assert_eq!(uri.host, Host::Name("db.example.com".into()));
    assert_eq!((uri.port, uri.database.as_deref()), (5433, Some("shop")));
    assert_eq!(uri.tls, Tls::Require);
    assert_eq!(uri.to_string(), "postgres://backup@db.example.com:5433/shop");
}

#[test]
fn sockets_addresses_and_defaults() {
    let uri = parse("postgres://u@/shop?host=/var/run/postgresql/&port=6000");
    assert_eq!((uri.host, uri.port), (Host::Socket("/var/run/postgresql".into()), 6000));
    let uri = parse("postgresql://u@%2Ftmp/shop");
    assert_eq!((uri.host.clone(), uri.port), (Host::Socket("/tmp".into()), DEFAULT_PORT));
    assert_eq!(uri.server(), "/tmp/.s.PGSQL.5432");
    let uri = parse("postgres://u@[::1]:5434/shop");
    assert_eq!((uri.host.clone(), uri.port), (Host::Name("::1".into()), 5434));
    assert_eq!(uri.server(), "[::1]:5434");
    assert_eq!(parse("postgres://u@h").database, None);
    assert_eq!(parse("postgres://u@h/").source_database().unwrap_err().reason, Reason::InvalidSource);
}

#[test]
fn names_that_need_encoding() {
    let uri = parse("postgres://u%40corp@h/%EB%B0%B1%EC%97%85%20%22a%22%20b=c%2Fd");
    assert_eq!(uri.user, "u@corp");
    assert_eq!(uri.database.as_deref(), Some("백업 \"a\" b=c/d"));
    assert_eq!(parse(&uri.to_string()), uri);
    let raw = parse("postgres://u@h/백업");
    assert_eq!(raw.database.as_deref(), Some("백업"));
    assert_eq!(parse("postgres://u@h/postgres:%2F%2Fx").database.as_deref(), Some("postgres://x"));
}

#[test]
fn one_source_has_one_identity() {
    let identity = parse("postgres://a@HOST/shop").identity();
    for other in ["postgresql://b@host:5432/shop?sslmode=disable", "POSTGRES://c@/sh%6Fp?host=Host&port=5432"] {
        assert_eq!(parse(other).identity(), identity, "{other}");
    }
    for other in ["postgres://a@host/Shop", "postgres://a@host:5433/shop", "postgres://a@host2/shop"] {
        assert_ne!(parse(other).identity(), identity, "{other}");
    }
}

#[test]
fn passwords_are_refused_and_never_repeated() {
    for text in [
        "postgres://u:hunter2@h/d",
        "postgres://u:@h/d",
        "postgres://u:hunter2/x@h/d",
        "postgres://u@h/d?password=hunter2",
        "postgres://u:hunt@er2@h:1/d",
        "postgres://h:hunter2/d",
        "mysql://u:hunter2@h/d",
    ] {
        let message = refused(text);
        assert!(!message.contains("hunt") && !message.contains("er2"), "{text}: {message}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for text in [
        "",
        "shop",
        "http://u@h/d",
        "postgres://h/d",
        "postgres://@h/d",
        "postgres://u@/d",
        "postgres://u@h,i/d",
        "postgres://u@h:0/d",
        "postgres://u@h:99999/d",
        "postgres://u@h:1/d?port=2",
        "postgres://u@h/d?host=/tmp",
        "postgres://u@[::1/d",
        "postgres://u@h/%zz",
        "postgres://u@h/%ff",
        "postgres://u@h/a%00b",
        "postgres://u@h/d?application_name=x",
        "postgres://u@h/d?sslmode=prefer&sslmode=disable",
        "postgres://u@h/d?sslmode=Require",
        "postgres://u@h/d?sslrootcert=/x",
        "postgres://u@h/d?sslmode=prefer&sslrootcert=/x",
        "postgres://u@h/d?sslmode=verify-ca&sslrootcert=system",
        "postgres://u@h/d?sslmode=require&sslcert=/c",
        "postgres://u@h/d?sslmode=require&sslkey=/k",
        "postgres://u@h/d?sslmode=require&sslcert=c&sslkey=/k",
        "postgres://u@h/d?sslcert=/c&sslkey=/k",
        "postgres://u@h/d?sslmode=allow&sslcert=/c&sslkey=/k",
        "postgres://u@/d?host=/tmp&sslmode=require&sslcert=/c&sslkey=/k",
        "postgres://u@h/d?sslmode=require&sslcert=/c&sslcert=/c&sslkey=/k",
    ] {
        refused(text);
    }
    let problem = "postgres://u@h/d?sslmode=verify-ca".parse::<Uri>().unwrap_err();
    assert!(problem.fix.contains("verify-full"), "{problem}");
    let uri = parse("postgres://u@h/d?sslmode=verify-full&sslrootcert=/etc/ca.pem");
    assert_eq!(uri.tls, Tls::VerifyFull { root_cert_path: Some("/etc/ca.pem".into()) });
}

#[test]
fn tls_is_read_as_libpq_reads_it() {
    let tls = |parameters: &str| parse(&format!("postgres://u@h/d?{parameters}")).tls;
    let path = || "/etc/ca.pem".into();
    for (parameters, expected) in [
        ("", Tls::Prefer),
        ("sslmode=prefer", Tls::Prefer),
        ("sslmode=disable", Tls::Disable),
        ("sslmode=allow", Tls::Allow),
        ("sslmode=require", Tls::Require),
        ("sslmode=require&sslrootcert=/etc/ca.pem", Tls::VerifyCa { root_cert_path: path() }),
        ("sslrootcert=/etc/ca.pem&sslmode=verify-ca", Tls::VerifyCa { root_cert_path: path() }),
        ("sslmode=verify-full", Tls::VerifyFull { root_cert_path: None }),
        ("sslmode=verify-full&sslrootcert=system", Tls::VerifyFull { root_cert_path: None }),
        ("sslmode=verify-full&sslrootcert=%2Fetc/ca.pem", Tls::VerifyFull { root_cert_path: Some(path()) }),
    ] {
        assert_eq!(tls(parameters), expected, "{parameters}");
    }
    let uri = parse("postgres://u@h/d?sslmode=verify-full&sslcert=/c%20d.pem&sslkey=/k.pem");
    let expected = ClientCertificate { cert_path: "/c d.pem".into(), key_path: "/k.pem".into() };
    assert_eq!(uri.client_certificate, Some(expected));
}
