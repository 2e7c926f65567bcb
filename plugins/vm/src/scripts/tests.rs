use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant as Clock;

use super::*;

/// A folder with scripts, as root would make it, for whoever runs the tests.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("a folder") };
        fs::create_dir(bench.folder()).expect("made");
        set_mode(&bench.folder(), 0o700);
        bench
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("scripts")
    }

    fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn owner() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        set_mode(&path, 0o700);
        path
    }

    fn config(&self, json: &str) {
        let path = self.folder().join(CONFIG_FILE);
        fs::write(&path, json).expect("written");
        set_mode(&path, 0o600);
    }

    /// Both scripts, and these fields.
    fn usual(&self, fields: &str) {
        let (pre, post) = (self.folder().join("pre.sh"), self.folder().join("post.sh"));
        let (pre, post) = (pre.display(), post.display());
        self.config(&format!(
            r#"{{"pluginName": "ScriptRunner", "preScriptLocation": "{pre}", "postScriptLocation": "{post}",
                "preScriptParams": ["", ""], "ScriptsExecutionPollTimeSeconds": 3{fields}}}"#
        ));
    }

    fn try_load(&self) -> Result<Option<Scripts>, Problem> {
        Scripts::load_of(&self.folder(), Self::owner(), &self.runtime())
    }

    fn load(&self) -> Scripts {
        self.try_load().expect("allowed").expect("configured")
    }

    /// A file that scripts of this test write into, a line each.
    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn logged(&self) -> Vec<String> {
        fs::read_to_string(self.log()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    async fn leftovers(&self) -> Vec<(PathBuf, Result<ScriptReport, Problem>)> {
        run_leftovers_of(&self.runtime(), Self::owner()).await
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the right is set");
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// True when no process has the word in its arguments.
fn nobody_runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    !processes.into_iter().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    })
}

#[tokio::test]
async fn both_run_with_their_parameters_and_a_clean_environment() {
    let bench = Bench::new();
    let log = bench.log().display().to_string();
    bench.script("pre.sh", &format!("echo \"$VAULTFERRY_SCRIPT $# $1\" >> {log}; env; echo problem >&2"));
    bench.script("post.sh", &format!("echo \"$VAULTFERRY_SCRIPT\" >> {log}"));
    bench.usual(r#", "postScriptParams": []"#);
    let scripts = bench.load();
    assert!(scripts.freezes() && scripts.has_pre());
    let pre = scripts.pre(&never()).await.expect("it ends well");
    assert!(pre.succeeded() && pre.attempts == 1, "{pre:?}");
    assert!(pre.words.contains("VAULTFERRY_SCRIPT_DIR=") && pre.words.contains("problem"), "{}", pre.words);
    assert!(!pre.words.contains("CARGO"), "our environment is not theirs: {}", pre.words);
    assert!(scripts.post().await.expect("it ends well").succeeded());
    assert_eq!(bench.logged(), ["pre-script 0 ", "post-script"]);
    assert!(!scripts.post().await.expect("nothing to do").ran, "once");
    assert!(bench.leftovers().await.is_empty());
}

#[tokio::test]
async fn what_others_could_have_written_is_not_run() {
    let bench = Bench::new();
    let log = bench.log().display().to_string();
    let pre = bench.script("pre.sh", &format!("echo pre >> {log}"));
    bench.script("post.sh", "true");
    let strict = r#", "continueBackupOnFailure": false"#;
    bench.usual(strict);
    for mode in [0o770, 0o702, 0o701, 0o740, 0o600] {
        set_mode(&pre, mode);
        let scripts = bench.load();
        let problem = scripts.pre(&never()).await.expect_err("not allowed");
        assert_eq!(problem.reason, Reason::ScriptNotAllowed, "{mode:o}: {problem}");
        scripts.post().await.expect("it runs all the same");
    }
    set_mode(&pre, 0o700);
    let config = bench.folder().join(CONFIG_FILE);
    for mode in [0o644, 0o660, 0o700] {
        set_mode(&config, mode);
        assert_eq!(bench.try_load().expect_err("not allowed").reason, Reason::ScriptNotAllowed, "{mode:o}");
    }
    set_mode(&config, 0o600);
    set_mode(&bench.folder(), 0o770);
    assert_eq!(bench.try_load().expect_err("not allowed").reason, Reason::ScriptNotAllowed);
    set_mode(&bench.folder(), 0o700);
    assert_eq!(
        Scripts::load_of(&bench.folder(), Bench::owner() + 1, &bench.runtime()).expect_err("another's").reason,
        Reason::ScriptNotAllowed
    );
    // Links: to the script, to the folder, and a folder that others may rename.
    let outside = bench.dir.path().join("outside.sh");
    fs::rename(&pre, &outside).expect("moved");
    std::os::unix::fs::symlink(&outside, &pre).expect("linked");
    let scripts = bench.load();
    assert_eq!(scripts.pre(&never()).await.expect_err("a link").reason, Reason::ScriptNotAllowed);
    scripts.post().await.expect("it runs all the same");
    let link = bench.dir.path().join("link");
    std::os::unix::fs::symlink(bench.folder(), &link).expect("linked");
    assert!(Scripts::load_of(&link, Bench::owner(), &bench.runtime()).is_err());
    // The system itself follows a link that has a slash behind it.
    assert!(Scripts::load_of(&bench.dir.path().join("link/"), Bench::owner(), &bench.runtime()).is_err());
    set_mode(bench.dir.path(), 0o777);
    assert!(bench.try_load().is_err());
    set_mode(bench.dir.path(), 0o700);
    assert!(bench.logged().is_empty(), "nothing was run");
}

#[test]
fn the_configuration_is_read_whole_or_not_at_all() {
    let bench = Bench::new();
    assert!(bench.try_load().expect("allowed").is_none(), "nothing is configured");
    for (json, fault) in [
        ("{", "no JSON"),
        (r#"{"timeoutInSeconds": 1801}"#, "1800"),
        (r#"{"timeoutInSeconds": 0}"#, "1800"),
        (r#"{"preScriptParams": "geheim"}"#, "wrong type"),
        (r#"{"continueBackupOnFailur": false}"#, "unknown field"),
        (r#"{"preScriptLocation": "/bin/true"}"#, "copy the script there"),
        (r#"{"postScriptLocation": "../x.sh"}"#, "copy the script there"),
        (r#"{"preScriptLocation": "a.sh", "preScriptNoOfRetries": 101}"#, "100"),
    ] {
        bench.config(json);
        let problem = bench.try_load().expect_err(json);
        assert!(problem.reason == Reason::ScriptNotAllowed && problem.message.contains(fault), "{json}: {problem}");
        assert!(!problem.message.contains("geheim"), "{problem}");
    }
    bench.config(r#"{"fsFreezeEnabled": false}"#);
    let scripts = bench.load();
    assert!(!scripts.freezes() && !scripts.has_pre());
}

#[tokio::test]
async fn a_failure_is_tried_again_and_then_costs_what_the_configuration_says() {
    let bench = Bench::new();
    let log = bench.log().display().to_string();
    bench.script("pre.sh", &format!("echo pre >> {log}; echo busy; exit 3"));
    bench.script("post.sh", &format!("echo post >> {log}"));
    bench.usual(r#", "preScriptNoOfRetries": 2, "continueBackupOnFailure": true"#);
    let scripts = bench.load();
    let report = scripts.pre(&never()).await.expect("the backup goes on");
    assert_eq!(report.attempts, 3);
    let problem = report.warnings().next().expect("a warning");
    assert!(problem.reason == Reason::ScriptFailed && problem.message.contains("exit status 3: busy"), "{problem}");
    scripts.post().await.expect("post");
    assert_eq!(bench.logged(), ["pre", "pre", "pre", "post"]);

    bench.usual(r#", "continueBackupOnFailure": false"#);
    let scripts = bench.load();
    assert_eq!(scripts.pre(&never()).await.expect_err("the backup ends").reason, Reason::ScriptFailed);
    assert!(scripts.post().await.expect("post runs all the same").succeeded());
    assert_eq!(bench.logged().last().map(String::as_str), Some("post"));
    // Missing altogether: no other than a failure.
    fs::remove_file(bench.folder().join("post.sh")).expect("removed");
    bench.script("pre.sh", "true");
    let scripts = bench.load();
    scripts.pre(&never()).await.expect("pre");
    assert_eq!(scripts.post().await.expect_err("missing").reason, Reason::ScriptNotAllowed);
    assert!(bench.leftovers().await.is_empty(), "it is not owed for ever");
}

#[tokio::test]
async fn a_hung_script_is_killed_with_all_that_it_started() {
    let bench = Bench::new();
    // Numbers that no other process on the machine has in its arguments.
    let word = format!("86{:05}", std::process::id() % 100_000);
    bench.script("pre.sh", &format!("trap '' TERM; sleep {word} & sleep {word}; sleep {word}"));
    bench.script("post.sh", "true");
    bench.usual(r#", "timeoutInSeconds": 1, "preScriptNoOfRetries": 5, "continueBackupOnFailure": false"#);
    let scripts = bench.load();
    let began = Clock::now();
    let problem = scripts.pre(&never()).await.expect_err("its time is over");
    assert!(problem.reason == Reason::ScriptFailed && problem.message.contains("within 1 s"), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: no other try", began.elapsed());
    for _ in 0..100 {
        if nobody_runs(&word) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(nobody_runs(&word), "something is left");
    scripts.post().await.expect("post");
}

#[tokio::test]
async fn a_background_session_lives_until_post_and_holds_nobody_up() {
    let bench = Bench::new();
    let pid = bench.dir.path().join("pid").display().to_string();
    // Also one that keeps the script's outputs open.
    bench.script("pre.sh", &format!("sleep 600 & echo $! > {pid}; echo started"));
    bench.script("post.sh", &format!("kill -0 $(cat {pid}) && kill $(cat {pid})"));
    bench.usual(r#", "continueBackupOnFailure": false, "timeoutInSeconds": 60"#);
    let scripts = bench.load();
    let began = Clock::now();
    let report = scripts.pre(&never()).await.expect("pre");
    assert!(report.words.contains("started") && began.elapsed() < Duration::from_secs(10), "{report:?}");
    assert!(scripts.post().await.expect("it was alive").succeeded());
}

#[tokio::test]
async fn much_output_is_cut() {
    let bench = Bench::new();
    bench.script("pre.sh", "echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1");
    bench.script("post.sh", "true");
    bench.usual("");
    let scripts = bench.load();
    let report = scripts.pre(&never()).await.expect("the backup goes on");
    assert!(report.words.len() <= WORDS_MAX + 16, "{} bytes", report.words.len());
    assert!(report.words.starts_with("begin") && report.words.ends_with("end"), "{}", report.words);
    scripts.post().await.expect("post");
}

#[tokio::test]
async fn a_killed_backup_owes_its_post_script() {
    let bench = Bench::new();
    let log = bench.log().display().to_string();
    bench.script("pre.sh", &format!("echo pre >> {log}"));
    bench.script("post.sh", &format!("echo post >> {log}"));
    bench.usual("");
    let first = bench.load();
    first.pre(&never()).await.expect("pre");
    // While it lives, nobody runs its post-script, and another backup waits.
    assert!(bench.leftovers().await.is_empty());
    let second = bench.load();
    let cancel = never();
    let waited = tokio::time::timeout(Duration::from_millis(500), second.pre(&cancel)).await;
    assert!(waited.is_err(), "the second waits");
    cancel.cancel();
    assert_eq!(second.pre(&cancel).await.expect_err("cancelled").reason, Reason::Cancelled);
    // As a kill does: nothing runs on, and the lock is gone.
    drop(first);
    let leftovers = bench.leftovers().await;
    assert!(matches!(leftovers.as_slice(), [(_, Ok(report))] if report.succeeded()), "{leftovers:?}");
    assert_eq!(bench.logged(), ["pre", "post"]);
    assert!(bench.leftovers().await.is_empty());
    // The next backup does the same by itself.
    drop({
        let killed = bench.load();
        killed.pre(&never()).await.expect("pre");
        killed
    });
    let next = bench.load();
    assert!(next.pre(&never()).await.expect("pre").succeeded());
    next.post().await.expect("post");
    assert_eq!(bench.logged(), ["pre", "post", "pre", "post", "pre", "post"]);
}

#[tokio::test]
async fn a_cancelled_pre_script_is_killed_and_owes_its_post_script() {
    let bench = Bench::new();
    let log = bench.log().display().to_string();
    bench.script("pre.sh", &format!("echo pre >> {log}; sleep 600"));
    bench.script("post.sh", &format!("echo post >> {log}"));
    bench.usual(r#", "timeoutInSeconds": 600"#);
    let scripts = bench.load();
    let cancel = never();
    let cancelling = async {
        while bench.logged().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel.cancel();
    };
    let (answer, ()) = tokio::join!(scripts.pre(&cancel), cancelling);
    assert_eq!(answer.expect_err("cancelled").reason, Reason::Cancelled);
    assert!(scripts.post().await.expect("post").succeeded());
    assert_eq!(bench.logged(), ["pre", "post"]);
    // Cancelled before it was started: it is not.
    let scripts = bench.load();
    assert_eq!(scripts.pre(&cancel).await.expect_err("cancelled").reason, Reason::Cancelled);
    scripts.post().await.expect("post");
    assert_eq!(bench.logged(), ["pre", "post", "post"]);
}

#[tokio::test]
async fn what_a_killed_backup_left_is_told_though_the_next_pre_script_fails() {
    let bench = Bench::new();
    bench.script("pre.sh", "true");
    bench.script("post.sh", "echo stuck; exit 4");
    bench.usual(r#", "continueBackupOnFailure": false"#);
    let killed = bench.load();
    killed.pre(&never()).await.expect("pre");
    drop(killed);
    bench.script("pre.sh", "exit 3");
    let problem = bench.load().pre(&never()).await.expect_err("it fails");
    assert!(problem.message.contains("exit status 3") && problem.message.contains("exit status 4: stuck"), "{problem}");
}

#[test]
fn folders_whose_paths_look_alike_are_two() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = dir.path().join("run");
    let first = record::try_lock(&run, Path::new("/a/-b"), Bench::owner()).expect("made").expect("free");
    first.begin().expect("written");
    let second = record::try_lock(&run, Path::new("/a-/b"), Bench::owner()).expect("made");
    let second = second.expect("free: it is another folder");
    assert!(first.is_due() && !second.is_due());
}

#[test]
fn the_ready_made_configurations_are_right() {
    for json in [
        include_str!("../../../../deploy/vm-scripts/postgresql/VMSnapshotScriptPluginConfig.json"),
        include_str!("../../../../deploy/vm-scripts/mysql/VMSnapshotScriptPluginConfig.json"),
    ] {
        let bench = Bench::new();
        bench.config(json);
        let scripts = bench.load();
        assert!(scripts.has_pre() && scripts.freezes());
    }
}
