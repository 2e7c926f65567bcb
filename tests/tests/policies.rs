//! Policies from the command line: what they would leave, where they come from, how they change, and how they go.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use vaultferry_tests::agent::{Agent, Reply, Setup, number};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{binary, policy, process, sample, workspace};

const DAY_US: i64 = 86_400_000_000;

/// A daily policy at 02:00 in Seoul with these rules (TOML).
fn daily(name: &str, rules: &str) -> String {
    format!(
        "name = \"{name}\"\nsource_type = \"postgres\"\ntime_zone = \"Asia/Seoul\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n{rules}"
    )
}

/// The policy that does not fire, with other rules.
fn quiet(vault: &str) -> String {
    policy::quiet("quiet").replace("P3M", vault)
}

/// Runs a command of `policy` that takes a document, which is written into a file first.
#[track_caller]
fn with_file(agent: &Agent, words: &[&str], document: &str) -> Reply {
    let file = agent.write("document", document).display().to_string();
    agent.cli_json(&[&["policy"], words, &[file.as_str()]].concat())
}

#[track_caller]
fn update(agent: &Agent, document: &str, flags: &[&str]) -> Reply {
    with_file(agent, &[&["update"], flags, &["-f"]].concat(), document)
}

#[track_caller]
fn show(agent: &Agent, name: &str) -> Value {
    agent.cli_json(&["policy", "show", name]).success().json()["policy"].clone()
}

fn names(agent: &Agent) -> Vec<Value> {
    let listed = agent.cli_json(&["policy", "list"]).success().json();
    listed["policies"].as_array().expect("a list").iter().map(|policy| policy["name"].clone()).collect()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}

/// The records of a policy in the vault.
fn versions(agent: &Agent, name: &str) -> usize {
    fs::read_dir(agent.state_dir().join("vault/policies").join(name)).map(Iterator::count).unwrap_or(0)
}

/// Makes the catalog believe that an instance, or its oldest point, is older than it is.
fn age(agent: &Agent, table: &str, column: &str, days: i64) {
    let catalog = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).expect("opens");
    let order = if table == "points" { "order by time limit 1" } else { "" };
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let (id, body) = catalog.query_row(&format!("select id, body from {table} {order}"), [], row).expect("a row");
    let mut body: Value = serde_json::from_str(&body).expect("JSON");
    let then = time(&body[column]).as_microsecond() - days * DAY_US;
    body[column] = Timestamp::from_microsecond(then).expect("a time").to_string().into();
    let set_time = if table == "points" { ", time = ?3" } else { "" };
    let sql = format!("update {table} set body = ?2{set_time} where id = ?1");
    let changed = match table {
        "points" => catalog.execute(&sql, (&id, body.to_string(), then)),
        _ => catalog.execute(&sql, (&id, body.to_string())),
    };
    assert_eq!(changed.expect("update"), 1);
}

/// Each point of 2027 in a list that a plain loop over the days makes, without any of the program's own calendar.
fn expected_year() -> Vec<(Timestamp, &'static str, Timestamp)> {
    let zone = TimeZone::get("Asia/Seoul").expect("a zone");
    let days = Date::constant(2027, 1, 1).series(Span::new().days(1)).take_while(|date| date.year() == 2027);
    days.map(|date| {
        let (rule, kept) =
            if date.day() == 1 { ("Monthly", Span::new().months(6)) } else { ("Default", Span::new().days(30)) };
        let made = date.at(2, 0, 0, 0).to_zoned(zone.clone()).expect("no gap in Seoul");
        let until = made.checked_add(kept).expect("a time");
        (made.timestamp(), rule, until.timestamp())
    })
    .collect()
}

#[test]
fn a_policy_is_simulated_before_and_after_it_is_made() {
    let agent = Setup::new().start();
    let rules = "[[rule]]\nname = \"Default\"\nvault = \"P30D\"\n[[rule]]\nname = \"Monthly\"\nfirst_of = \"month\"\nvault = \"P6M\"\n";
    let year = ["--simulate", "1y", "--from", "2027-01-01"];
    // The document alone: nothing is created.
    let before = with_file(&agent, &[&["create"], &year[..], &["-f"]].concat(), &daily("p", rules)).success().json();
    assert_eq!(names(&agent), [] as [Value; 0]);

    with_file(&agent, &["create", "-f"], &daily("p", rules)).success();
    let told = agent.cli_json(&[&["policy", "show", "p"], &year[..]].concat()).success().json();
    assert_eq!(told, before);
    let simulation = &told["simulation"];
    assert_eq!((&simulation["policy"], &simulation["time_zone"]), (&json!("p"), &json!("Asia/Seoul")));
    assert_eq!(simulation["rules"], json!(["Monthly", "Default"]));
    let (from, to) = (time(&simulation["from_time"]), time(&simulation["to_time"]));
    assert_eq!((from.to_string(), to.to_string()), ("2026-12-31T15:00:00Z".into(), "2027-12-31T15:00:00Z".into()));
    let points = simulation["points"].as_array().expect("points");
    let expected = expected_year();
    assert_eq!((points.len(), expected.len()), (365, 365));
    for (at, (point, (made, rule, until))) in points.iter().zip(&expected).enumerate() {
        assert_eq!((time(&point["create_time"]), point["rule"].as_str()), (*made, Some(*rule)));
        let stays = point["stays"].as_array().expect("stays");
        assert_eq!((stays.len(), &stays[0]["store"], time(&stays[0]["from_time"])), (1, &json!("vault"), *made));
        // The last one stays until there is another.
        let last = at == 364;
        assert_eq!(stays[0]["until_time"].is_null(), last, "{point}");
        assert!(last || time(&stays[0]["until_time"]) == *until, "{point}");
    }

    let text = agent.cli(&[&["policy", "show", "p"], &year[..]].concat()).success().stdout;
    let there = expected.iter().filter(|(_, _, until)| *until > to).count();
    for part in [
        "Policy p, from 2027-01-01 to 2028-01-01 (Asia/Seoul)".to_owned(),
        format!("Points on 2028-01-01: {there}"),
        "2027-12-01 02:00  Monthly  2028-06-01".to_owned(),
        "2027-12-31 02:00  Default  open".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in\n{text}");
    }
    assert!(!text.contains("Points that exist"), "{text}");

    assert_eq!(agent.cli(&["policy", "show", "p", "--simulate", "forever"]).code, 2);
    agent.cli_json(&["policy", "show", "p", "--simulate", "9000y"]).assert_failed("InvalidRequest");
    agent.cli_json(&["policy", "show", "p", "--simulate", "999y"]).assert_failed("InvalidRequest");
    agent.cli_json(&["policy", "show", "none", "--simulate", "1y"]).assert_failed("PolicyNotFound");
    agent
        .cli_json(&["policy", "show", "p", "--simulate", "1y", "--instance", "none"])
        .assert_failed("InstanceNotFound");
    with_file(&agent, &["create", "--simulate", "1y", "-f"], "name = 1").assert_failed("InvalidPolicy");
}

/// A sample of the coordinator's tests, without what asks for the archive store, which has tests of its own.
fn azure_sample(name: &str) -> Value {
    let path = workspace().join("coordinator/src/policy/tests/azure_samples").join(name);
    let mut policy: Value = serde_json::from_str(&fs::read_to_string(path).expect("the sample")).expect("JSON");
    for rule in policy.pointer_mut("/properties/policyRules").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(lifecycles) = rule.get_mut("lifecycles").and_then(Value::as_array_mut) else { continue };
        lifecycles.retain(|lifecycle| lifecycle["sourceDataStore"]["dataStoreType"] == "VaultStore");
        lifecycles.iter_mut().for_each(|lifecycle| lifecycle["targetDataStoreCopySettings"] = json!([]));
    }
    policy
}

#[test]
fn policies_come_from_azure_and_go_there() {
    let agent = Setup::new().start();
    let from_azure = |words: &[&str], policy: &Value| {
        with_file(&agent, &[&["create"], words, &["--from-azure"]].concat(), &policy.to_string())
    };
    let mut sample = azure_sample("postgres.json");
    sample["properties"]["policyRules"][0]["backupParameters"]["backupType"] = "Incremental".into();
    let made = from_azure(&[], &sample).success().json();
    assert_eq!(made["policy"]["name"], "pg-weekly");
    assert_eq!(made["notes"].as_array().map(Vec::len), Some(1), "{:#}", made["notes"]);
    assert!(made["notes"][0].as_str().is_some_and(|note| note.contains("Incremental")), "{:#}", made["notes"]);
    let document = made["policy"]["document"].as_str().expect("a document");
    assert_eq!(
        document,
        "name = \"pg-weekly\"\nsource_type = \"postgres\"\ntime_zone = \"Asia/Seoul\"\n\n[schedule]\nevery = \"week\"\n\
         on = [\"Sun\", \"Wed\"]\nat = [\"02:00\"]\n\n[[rule]]\nname = \"Yearly\"\nfirst_of = \"year\"\nvault = \"P1Y\"\n\n\
         [[rule]]\nname = \"Monthly\"\nfirst_of = \"month\"\nvault = \"P6M\"\n\n[[rule]]\nname = \"Sundays\"\non = \"Sun\"\n\
         vault = \"P26W\"\n\n[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n"
    );
    // Again: no error, and no other version. In the text format the notes stand beside the result.
    let file = agent.write("again.json", &sample.to_string()).display().to_string();
    let again = agent.cli(&["policy", "create", "--from-azure", &file]).success();
    assert!(again.stdout.contains("pg-weekly") && !again.stdout.contains("Incremental"), "{}", again.stdout);
    assert!(again.stderr.starts_with("note: backupType Incremental"), "{}", again.stderr);
    assert_eq!(versions(&agent, "pg-weekly"), 1);

    // There and back again.
    let exported = agent.cli(&["policy", "show", "pg-weekly", "--as", "azure"]).success();
    assert_eq!(exported.stderr, "", "all of it can be expressed");
    let exported = exported.json();
    let rules = exported["properties"]["policyRules"].as_array().expect("rules");
    assert_eq!((&exported["name"], rules.len()), (&json!("pg-weekly"), 5));
    let trigger = &rules[0]["trigger"]["schedule"];
    assert_eq!(trigger["timeZone"], "Korea Standard Time");
    assert_eq!(trigger["repeatingTimeIntervals"].as_array().map(Vec::len), Some(2));
    let back = from_azure(&["--name", "back"], &exported).success().json();
    assert_eq!(back["notes"], json!([]));
    let renamed = document.replace("pg-weekly", "back");
    let sorted = |text: &str| {
        let mut rules: Vec<String> = text.split("\n[[rule]]").map(|rule| rule.trim().to_owned()).collect();
        rules.sort();
        rules
    };
    assert_eq!(sorted(back["policy"]["document"].as_str().expect("a document")), sorted(&renamed));

    // What Azure has no word for is told on standard error, in both formats.
    let jittery = quiet("P3M").replace("[schedule]", "[schedule]\njitter = \"PT10M\"");
    with_file(&agent, &["create", "-f"], &jittery).success();
    let exported = agent.cli(&["policy", "show", "quiet", "--as", "azure"]).success();
    assert!(exported.stderr.contains("note: jitter cannot be expressed"), "{}", exported.stderr);
    let exported = agent.cli_json(&["policy", "show", "quiet", "--as", "azure"]).success();
    assert_eq!(exported.json()["name"], "quiet");
    let notes: Value = serde_json::from_str(exported.stderr.trim()).expect("one JSON value");
    assert!(notes["notes"][0].as_str().is_some_and(|note| note.contains("jitter")), "{notes}");

    let machines = from_azure(&[], &azure_sample("vm-hourly.json")).success().json();
    assert_eq!(machines["policy"]["source_type"], "vm");
    let exported = agent.cli_json(&["policy", "show", "vm-enhanced", "--as", "azure"]).success().json();
    assert_eq!(exported["properties"]["backupManagementType"], "AzureIaasVM");

    // What is refused is refused with its reasons, and nothing is made.
    let text = sample.to_string();
    for (json, part) in [
        (text.replace("P3M", "P11Y"), "between 7 days and 10 years in the vault store"),
        (text.replace("P26W", "P1D"), "rule \\\"Sundays\\\""),
        (text.replace("Korea Standard Time", "Mars Standard Time"), "Mars Standard Time"),
        (text.replace("servers/databases", "something/else"), "not supported"),
        ("{}".to_owned(), "neither policyRules"),
        ("no JSON".to_owned(), "not JSON"),
    ] {
        let reply = with_file(&agent, &["create", "--name", "refused", "--from-azure"], &json);
        reply.assert_failed("InvalidPolicy");
        assert!(reply.stderr.contains(part), "{part} in {}", reply.stderr);
    }
    from_azure(&["--name", "quiet"], &sample).assert_failed("NameTaken");
    assert_eq!(names(&agent), ["back", "pg-weekly", "quiet", "vm-enhanced"]);
}

/// Runs a command at a terminal of its own where somebody types this; its exit code, and all that is to be seen there.
#[track_caller]
fn at_a_terminal(agent: &Agent, words: &[&str], typed: &str) -> (i32, String) {
    let command = format!("{} {}", binary().display(), words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    script.env("VAULTFERRY_ENDPOINT", format!("unix://{}/control.sock", agent.dir().display()));
    let output = process::run(&mut script, typed.as_bytes(), Duration::from_secs(60));
    (output.code, output.text())
}

/// Same, longer, moved, shorter, expiring.
fn figures(change: &Value) -> [u64; 5] {
    ["same", "longer", "moved", "shorter", "expiring"].map(|what| number(&change[format!("points_{what}")]))
}

#[test]
fn a_change_is_previewed_confirmed_and_kept() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.backup("shop");
    // P3M is over in a month, P1M was over a month ago.
    agent.terminate();
    age(&agent, "points", "time", 60);
    agent.start();
    let points = agent.points("shop");
    let (newest, oldest) = (points[0]["id"].clone(), points[1]["id"].clone());

    let preview = update(&agent, &quiet("P1M"), &["--preview"]).success().json();
    assert_eq!((&preview["preview"], &preview["needs_confirmation"]), (&json!(true), &json!(true)));
    assert_eq!((number(&preview["previous"]["version"]), number(&preview["policy"]["version"])), (1, 2));
    let change = &preview["instances"][0];
    assert_eq!((&change["instance_id"], &change["instance_name"]), (&json!(instance), &json!("shop")));
    assert_eq!(figures(change), [0, 0, 0, 1, 1], "{change:#}");
    let effects: Vec<_> =
        change["points"].as_array().expect("points").iter().map(|p| (&p["id"], &p["effect"])).collect();
    assert_eq!(effects, [(&oldest, &json!("expires")), (&newest, &json!("shorter"))]);
    assert_eq!(time(&change["points"][1]["expire_time"]), time(&points[0]["expire_time"]));
    let file = agent.write("shorter.toml", &quiet("P1M")).display().to_string();
    let text = agent.cli(&["policy", "update", "--preview", "-f", &file]).success().stdout;
    for part in ["nothing was changed", "1 -> 2", "OVER AT ONCE", "shorter", "expires", "--yes"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }

    // Nobody is at a terminal here: the figures are the answer, and nothing has changed.
    let refused = update(&agent, &quiet("P1M"), &[]);
    refused.assert_failed("RetentionShortened");
    for part in
        ["version 2 of the policy quiet", "2 of 2 points", "the time of 1 of them", "shop 2", "--yes", "--preview"]
    {
        assert!(refused.stderr.contains(part), "{part} in {}", refused.stderr);
    }
    assert_eq!((number(&show(&agent, "quiet")["version"]), versions(&agent, "quiet")), (1, 1));

    // Longer needs no word. The points follow at once.
    let longer = update(&agent, &quiet("P6M"), &[]).success().json();
    assert_eq!((figures(&longer["instances"][0]), &longer["preview"]), ([0, 2, 0, 0, 0], &json!(false)));
    assert_eq!((number(&show(&agent, "quiet")["version"]), versions(&agent, "quiet")), (2, 2));
    let after = agent.points("shop");
    assert!(time(&after[0]["expire_time"]) > time(&points[0]["expire_time"]), "{:#}", after[0]);
    // The same again is no change.
    let again = update(&agent, &quiet("P6M"), &[]).success().json();
    assert_eq!((&again["policy"], &again["instances"]), (&again["previous"], &json!([])));
    assert_eq!(versions(&agent, "quiet"), 2);

    // At a terminal somebody is asked, after a look at the preview.
    let (code, text) = at_a_terminal(&agent, &["policy", "update", "-f", &file], "n\n");
    assert!(
        code == 1 && text.contains("nothing was changed") && text.contains("all the same? [y/N]"),
        "{code}: {text}"
    );
    assert!(text.contains("OVER AT ONCE") && text.contains("Cancelled"), "{text}");
    assert_eq!(versions(&agent, "quiet"), 2);
    let (code, text) = at_a_terminal(&agent, &["policy", "update", "-f", &file], "y\n");
    assert!(code == 0 && text.contains("The policy is changed."), "{code}: {text}");
    assert_eq!((number(&show(&agent, "quiet")["version"]), versions(&agent, "quiet")), (3, 3));
    // Elsewhere --yes is the word.
    update(&agent, &quiet("P6M"), &[]).success();
    let shorter = update(&agent, &quiet("P1M"), &["--yes"]).success().json();
    assert_eq!((number(&shorter["policy"]["version"]), figures(&shorter["instances"][0])), (5, [0, 0, 0, 1, 1]));
    let made = agent.backup("shop");
    let point = agent.cli_json(&["point", "show", "shop", made.point_id()]).success().json();
    assert_eq!(number(&point["point"]["policy_version"]), 5);
    // The points that exist say under which version they were made.
    assert_eq!(number(&agent.points("shop").last().expect("a point")["policy_version"]), 1);

    // With the points that exist, a simulation begins with them.
    let told = agent.cli_json(&["policy", "show", "quiet", "--simulate", "8w", "--instance", "shop"]).success().json();
    let there = told["simulation"]["points"].as_array().expect("points");
    let known: Vec<&Value> = there.iter().filter(|point| point["id"] != "").map(|point| &point["id"]).collect();
    assert_eq!(known, [&oldest, &newest, &json!(made.point_id())]);
    assert_eq!(there.len() - known.len(), 8, "one a week");
    let text = agent.cli(&["policy", "show", "quiet", "--simulate", "8w", "--instance", "shop"]).success().stdout;
    assert!(text.contains("Points that exist now: 3") && text.contains(&made.point_id()[..16]), "{text}");

    update(&agent, &quiet("P3M").replace("quiet", "none"), &[]).assert_failed("PolicyNotFound");
    update(&agent, &quiet("P3M").replace("postgres", "vm"), &["--yes"]).assert_failed("PolicySourceTypeMismatch");
    update(&agent, &quiet("P3D"), &["--yes"]).assert_failed("InvalidPolicy");
    assert_eq!(versions(&agent, "quiet"), 5);

    // All of it is in the vault.
    let before = show(&agent, "quiet");
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!(show(&agent, "quiet"), before);
    let check = agent.cli_json(&["vault", "check", "--wait"]);
    assert_eq!(check.code, 0, "{check:?}");
}

/// What the new schedule would have had before nobody has missed.
#[test]
fn a_new_schedule_begins_with_the_change() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    // Protected three days ago. The weekly slot is three days ahead and was four days ago; nothing is owed.
    agent.terminate();
    age(&agent, "instances", "create_time", 3);
    agent.start();
    let changed =
        update(&agent, &daily("quiet", "[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n"), &[]).success().json();
    assert_eq!(changed["policy"]["schedule"]["every"], "day");
    let next = agent.cli_json(&["instance", "show", "shop"]).success().json()["instance"]["next_backup_time"].clone();
    assert_eq!(next, changed["policy"]["schedule"]["next_run_time"]);
    // The schedule is looked at when the policy changes and when a job ends; by then it would have begun what it owes.
    agent.backup("shop");
    agent.restart();
    agent.backup("shop");
    let jobs = agent.cli_json(&["job", "list", "--operation", "backup"]).success().json();
    let scheduled: Vec<&Value> = jobs["jobs"].as_array().expect("jobs").iter().map(|job| &job["scheduled"]).collect();
    // A slot may come while the test runs, at 02:00 in Seoul.
    let may_fire = time(&next) <= Timestamp::now();
    assert!(may_fire || scheduled == [&json!(false), &json!(false)], "{jobs:#}");
}

#[test]
fn a_policy_is_deleted_when_nothing_follows_it() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let refused = agent.cli_json(&["policy", "delete", "quiet"]);
    refused.assert_failed("PolicyInUse");
    assert!(refused.stderr.contains("linked to shop"), "{}", refused.stderr);
    assert_eq!(versions(&agent, "quiet"), 1);

    agent.create_policy("spare");
    let id = show(&agent, "spare")["id"].clone();
    let deleted = agent.cli_json(&["policy", "delete", id.as_str().expect("an id")]).success().json();
    assert_eq!(deleted["policy"]["name"], "spare");
    assert_eq!(names(&agent), ["quiet"]);
    for words in [
        &["policy", "show", "spare"][..],
        &["policy", "delete", "spare"],
        &["policy", "show", "spare", "--as", "azure"],
    ] {
        agent.cli_json(words).assert_failed("PolicyNotFound");
    }
    let (source, passfile) = (server.uri("postgres"), server.passfile().display().to_string());
    let link =
        ["instance", "create", "--source", &source, "--policy", "spare", "--name", "other", "--passfile", &passfile];
    agent.cli_json(&link).assert_failed("PolicyNotFound");
    update(&agent, &policy::quiet("spare"), &[]).assert_failed("PolicyNotFound");
    // The vault keeps the version, and that it is deleted.
    assert_eq!(versions(&agent, "spare"), 2);
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!(names(&agent), ["quiet"]);

    // The name is free, for another document too; the versions go on.
    let other = policy::quiet("spare").replace("P3M", "P2M");
    let made = with_file(&agent, &["create", "-f"], &other).success().json();
    assert_eq!((number(&made["policy"]["version"]), &made["policy"]["id"]), (3, &id));
    with_file(&agent, &["create", "-f"], &policy::quiet("spare")).assert_failed("NameTaken");
    agent.cli_json(&link).success();
    agent.cli_json(&["policy", "delete", "spare"]).assert_failed("PolicyInUse");
    let check = agent.cli_json(&["vault", "check", "--keyless", "--wait"]);
    assert_eq!(check.code, 0, "{check:?}");
}

/// A kill between the vault and the catalog: the version is in the vault, so it happened.
#[test]
fn a_version_that_only_the_vault_has_is_taken_over() {
    let mut agent = Setup::new().start();
    agent.create_policy("quiet");
    agent.create_policy("gone");
    let record = |agent: &Agent, name: &str, version: u32| {
        let path = agent.state_dir().join(format!("vault/policies/{name}/{version:010}.json"));
        path.display().to_string()
    };
    let write_next = |agent: &Agent, name: &str, version: u32, change: &dyn Fn(&mut Value)| {
        let before = fs::read(record(agent, name, version)).expect("the record before");
        let mut next: Value = serde_json::from_slice(&before).expect("JSON");
        next["policy_version"] = (version + 1).into();
        change(&mut next);
        fs::write(Path::new(&record(agent, name, version + 1)), next.to_string()).expect("write");
    };
    agent.kill9();
    write_next(&agent, "quiet", 1, &|next| next["document"] = quiet("P6M").into());
    write_next(&agent, "gone", 1, &|next| next["deleted"] = true.into());
    agent.start();
    let shown = show(&agent, "quiet");
    assert_eq!((number(&shown["version"]), &shown["rules"][0]["vault"]), (2, &json!("P6M")));
    assert_eq!(names(&agent), ["quiet"]);

    // An answer that was lost: the next change goes on after it, without a start between.
    write_next(&agent, "quiet", 2, &|next| next["document"] = quiet("P9M").into());
    assert_eq!(number(&show(&agent, "quiet")["version"]), 2);
    let changed = update(&agent, &quiet("P1Y"), &[]).success().json();
    assert_eq!((number(&changed["previous"]["version"]), number(&changed["policy"]["version"])), (3, 4));
    assert_eq!(versions(&agent, "quiet"), 4);

    // What cannot be read is told, and the others are not held up by it.
    agent.terminate();
    agent.expect_log("is not taken into the catalog");
    fs::write(record(&agent, "quiet", 5), "{").expect("write");
    agent.start();
    assert_eq!(number(&show(&agent, "quiet")["version"]), 4);
    update(&agent, &quiet("P2Y"), &[]).assert_failed("VaultUnreadable");
}
