//! The support library on its own: what the other tests stand on must stand.

use vaultferry_tests::azurite;
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::process;
use vaultferry_tests::sample;

#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let server = Server::start();
    sample::awkward(&server, "Awkward 한글", 1);
    let original = contents(&server, "Awkward 한글");
    assert!(original.data.len() > 30, "{:#?}", original.data.keys());
    server.psql("postgres", "create database copy template \"Awkward 한글\"");
    assert_equal(&original, &contents(&server, "copy"));
    let changes = [
        "select setval('at_start', 42, true)",
        "select lo_put(4711, 5, '\\x01')",
        "alter large object 4712 owner to leser",
        "update types set big = 'NaN' where big = 5e-324",
        "update \"한글\".\"이름이 아주 긴 표 이름이 아주\" set \"값\" = '나' where \"값\" = ''",
        "delete from hashed_1 where id = (select min(id) from hashed_1)",
        "refresh materialized view not_filled",
        "update bulk set content = set_byte(content, 100, 255 - get_byte(content, 100)) where id = 7",
        "comment on column parent.a is 'new'",
        "drop policy \"own rows\" on watched",
    ];
    for change in changes {
        let before = contents(&server, "copy");
        server.psql("copy", change);
        assert_ne!(before, contents(&server, "copy"), "not seen: {change}");
    }
}

#[test]
fn a_server_restarts_dies_and_leaves_nothing() {
    let mut server = Server::start();
    let dir = server.data_dir();
    assert_eq!(server.psql("postgres", "select 1"), "1");
    server.restart();
    assert_eq!(server.psql("postgres", "select current_setting('password_encryption')"), "scram-sha-256");
    assert!(server.databases().is_empty());
    server.kill_hard();
    assert_ne!(server.try_psql("postgres", "select 1").code, 0);
    drop(server);
    assert!(!dir.exists());
    assert!(process::mentioning(&dir.display().to_string()).is_empty());
}

#[test]
fn azurite_answers_and_is_copied_out() {
    let azurite = azurite::Server::start();
    let account = &azurite.vault;
    account.create_container("one");
    let body: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    account.put("one", "a/b.bin", &body);
    account.put("one", "empty", b"");
    assert_eq!(account.containers(), ["one"]);
    assert!(azurite.other.containers().is_empty());
    let dir = vaultferry_tests::scratch::Scratch::new("copy");
    account.copy_out("one", dir.path());
    assert_eq!(std::fs::read(dir.join("a/b.bin")).expect("copied"), body);
    assert_eq!(std::fs::read(dir.join("empty")).expect("copied"), b"");
}
