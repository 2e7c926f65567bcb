use std::fmt::Write as _;
use std::path::Path;

use super::*;

fn parse(words: &str) -> Result<Args, clap::Error> {
    Args::try_from_words(std::iter::once("vaultferry").chain(words.split_whitespace()))
}

#[test]
fn the_declaration_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn every_promised_command_parses() {
    for words in [
        "agent run --config /etc/a.toml",
        "agent check-config",
        "agent network-check --vault azure://account/name --region koreacentral --disks managed --deny-priority 1000",
        "vault init --config a.toml",
        "vault show --output json",
        "vault settings --output json",
        "vault settings --immutability locked --immutability-days 30 --yes",
        "vault settings --soft-delete-days 30",
        "vault key export shop",
        "vault check",
        "vault check shop other --read-data --wait",
        "vault check --read-data-subset 5%",
        "vault check --keyless --offline --location /v",
        "vault prune shop --dry-run --wait",
        "policy create -f p.toml",
        "policy list",
        "policy show nightly",
        "policy show nightly --simulate 3y --from 2027-01-01 --instance shop --output json",
        "policy show nightly --simulate P18M --from 2027-01-01T02:00",
        "policy show nightly --as azure",
        "policy create -f p.toml --simulate 36mo",
        "policy create --from-azure p.json --name n",
        "policy update -f p.toml --preview",
        "policy update -f - --yes",
        "policy delete nightly",
        "instance create --source postgres://u@h/a --policy p --name n --region r --passfile f",
        "instance create --source postgres://u@h/a --source postgres://u@h/b --policy p --password-env V",
        "instance create --source postgres://u@h/a postgres://u@h/b --policy p",
        "instance create --source postgres://u@h/a --identity managed:1 --client-cert c --client-key k",
        "discover postgres postgres://u@h/ --passfile f --client-cert c --client-key k",
        "restore database shop --target postgres://u@h/ --database d --identity workload",
        "instance create --source postgres://u@h/a",
        "instance create --source postgres://u@h/a postgres://u@h/b --check",
        "instance create --file sources.txt --only-ready --policy p",
        "discover postgres postgres://u@h/",
        "discover postgres postgres://u@h/ postgres://u@h2/ --passfile f --output json",
        "discover postgres --file servers.txt --password-env V",
        "discover postgres --servers-file servers.txt --passfile f --extensions",
        "discover postgres --subscription i --resource-group g --azure-identity workload --user u --port 5433 --sslmode require",
        "discover containers --account a --credential-env V --prefix db-",
        "discover containers --subscription i",
        "discover containers --subscription i --resource-group g --azure-identity managed --account a",
        "server add postgres://u@h/",
        "server add postgres://u@h/ --policy p --include shop_* --include a --exclude *_test --passfile f --region r",
        "server list --output json",
        "server scan",
        "server scan h:5432",
        "server remove h:5432",
        "instance list",
        "instance show shop",
        "instance list --deleted --output json",
        "instance validate shop",
        "instance pause shop",
        "instance resume shop",
        "instance resume shop --policy weekly --yes",
        "instance stop shop --retain-data",
        "instance stop shop --retain-data --yes",
        "instance stop shop --delete-data --yes --wait",
        "instance undelete shop --wait",
        "instance rename shop store",
        "instance move shop --source postgres://u@h2/a --passfile f --region r",
        "instance move shop --source postgres://u@h2/a --password-env V",
        "instance change-policy shop --policy weekly --preview",
        "instance change-policy shop --policy weekly --yes",
        "backup shop --rule Monthly --wait",
        "backup shop --keep-until 2027-12-31 --wait",
        "point list shop",
        "point show shop 3f9a01",
        "point show shop",
        "point list shop --deleted",
        "point verify shop --wait",
        "point hold shop 3f9a01 --note audit",
        "point release shop 3f9a01",
        "point delete shop 3f9a01 --yes --wait",
        "point undelete shop 3f9a01",
        "point archive shop 3f9a01 --wait",
        "restore database shop --target postgres://u@h/ --database d --point i --target-region r --passfile f --no-owner --wait",
        "restore database shop --target postgres://u@h/ --database d --plan --output json",
        "restore database shop --target postgres://u@h/ --database d --schema a --schema b --table a.b --table c.d --wait",
        "restore database shop --target postgres://u@h/ --database d --globals --keep-failed --verify sample --wait",
        "restore files shop --container azure://a/c/p --credential-env V --wait",
        "restore disk machine --to /srv/machine.raw --wait",
        "restore disk machine --to /dev/vdb --disk disk0 --point i --yes-overwrite /dev/vdb --wait",
        "discover vm",
        "discover vm /srv/images /dev --output json",
        "restore files shop --to folder --point i --credential-env V --target-region r --wait",
        "job list --status failed --operation Backup --from 2026-11-01 --to 2026-11-02",
        "job show 1",
        "job watch 1",
        "job cancel 1",
        "summary",
        "plugin postgres",
        "--endpoint unix:///run/x.sock --output text summary",
    ] {
        if let Err(error) = parse(words) {
            panic!("{words}: {error}");
        }
    }
}

#[test]
fn wrong_usage_is_refused_with_code_2() {
    for words in [
        "instance create --source postgres://u@h/a --source postgres://u@h/b --policy p --name n",
        "instance create --policy p",
        "instance create --source postgres://u@h/a --check --only-ready",
        "discover",
        "discover postgres --file f --passfile f --password-env V",
        "discover postgres postgres://u@h/ --passfile f --identity managed",
        "discover postgres postgres://u@h/ --password-env V --identity managed",
        "discover postgres postgres://u@h/ --client-cert c",
        "discover postgres postgres://u@h/ --client-key k",
        "discover mysql mysql://u@h/",
        "discover postgres postgres://u@h/ --user u",
        "discover postgres --subscription i --port 70000",
        "discover containers",
        "discover containers --subscription i --credential-env V",
        "discover containers --account a --resource-group g",
        "server add",
        "server add postgres://u@h/ --include",
        "server remove",
        "instance stop shop",
        "instance stop shop --delete-data --retain-data",
        "instance rename shop",
        "instance move shop",
        "instance change-policy shop",
        "instance change-policy shop --policy weekly --preview --yes",
        "instance create --source postgres://u@h/a --policy p --passfile f --password-env V",
        "restore database shop --target postgres://u@h/",
        "restore database shop --target postgres://u@h/ --database d --plan --wait",
        "restore database shop --target postgres://u@h/ --database d --globals --no-owner",
        "restore database shop --target postgres://u@h/ --database d --verify some",
        "job list --from yesterday",
        "--endpoint https://host:7443 summary",
        "--output yaml summary",
        "backup",
        "backup shop --rule Monthly --keep-until 2027-12-31",
        "backup shop --read-limit 20MB",
        "backup shop --read-limit 1KB/s",
        "discover postgres",
        "vault check --read-data --read-data-subset 5%",
        "vault check --read-data-subset 0%",
        "vault check --read-data-subset 101%",
        "vault check --offline",
        "vault check --keyless --location /v",
        "vault settings --immutability frozen",
        "vault settings --soft-delete-days -1",
        "vault settings --yes",
        "point hold shop 3f9a01",
        "point delete shop",
        "policy create",
        "policy create --name n",
        "policy create -f p.toml --name n",
        "policy create -f p.toml --from-azure p.json",
        "policy create --from-azure p.json --simulate 3y",
        "policy create -f p.toml --from 2027-01-01",
        "policy show nightly --simulate three",
        "policy show nightly --simulate P0D",
        "policy show nightly --simulate -P3Y",
        "policy show nightly --simulate 3y --from someday",
        "policy show nightly --instance shop",
        "policy show nightly --as aws",
        "policy show nightly --as azure --simulate 3y",
        "policy update",
        "policy update -f p.toml --preview --yes",
        "policy delete",
    ] {
        let error = parse(words).expect_err(words);
        assert_eq!(error.exit_code(), 2, "{words}");
    }
}

#[test]
fn a_day_is_whole() {
    let day = values::from_time("2026-11-01").unwrap();
    let end = values::to_time("2026-11-01").unwrap();
    let noon = values::to_time("2026-11-01T12:00").unwrap();
    assert!(day < noon && noon < end);
    assert_eq!(values::to_time("2026-11-01T12:00:00Z").unwrap().as_second(), 1_793_534_400);
}

/// The whole help text, compared with tests/golden/help.txt; UPDATE_GOLDEN=1 rewrites that file.
#[test]
fn help_is_as_in_the_golden_file() {
    let mut text = String::new();
    let mut root = Args::command().term_width(100);
    root.build();
    write_help(&mut root, "vaultferry", &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(golden == text, "the help text has changed; look at it, then run this test with UPDATE_GOLDEN=1:\n{text}");
}

fn write_help(command: &mut clap::Command, path: &str, text: &mut String) {
    writeln!(text, "$ {path} --help\n{}", command.render_help()).unwrap();
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        let sub = command.find_subcommand_mut(&name).expect("it was listed above");
        write_help(sub, &format!("{path} {name}"), text);
    }
}
