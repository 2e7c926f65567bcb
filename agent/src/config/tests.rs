use secrecy::ExposeSecret as _;

use super::*;

const KEY: (&str, &str) = ("AZURE_STORAGE_KEY", "c2VjcmV0LXZhbHVl");

fn read(text: &str, surroundings: &Surroundings, purpose: Purpose) -> Result<Settings, Problem> {
    let mut faults = Faults::default();
    match parse(None, text, surroundings, purpose, &mut faults) {
        Some(settings) if faults.is_empty() => Ok(settings),
        _ => Err(faults.into_problem(None)),
    }
}

fn user() -> Surroundings {
    Surroundings::new(&[("HOME", "/home/kim"), ("XDG_RUNTIME_DIR", "/run/user/1000")], false)
}

/// Its limits of jobs: in all, on a server, of maintenance.
fn jobs(settings: &Settings) -> (usize, usize, usize) {
    let limits = settings.limits.jobs;
    (limits.jobs, limits.jobs_per_server, limits.maintenance_jobs)
}

/// The faults of `text`, as lines.
fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let problem = read(text, &Surroundings::new(variables, true), Purpose::Agent).expect_err(text);
    assert_eq!(problem.reason, Reason::InvalidConfiguration);
    problem.message.lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn defaults_of_root_and_of_a_user() {
    let root = read("", &Surroundings::new(&[], true), Purpose::Agent).unwrap();
    assert_eq!(root.state_dir, Path::new("/var/lib/vaultferry"));
    assert_eq!(root.listen[0].to_string(), "unix:///run/vaultferry/control.sock");
    assert_eq!(root.location().to_string(), "/var/lib/vaultferry/vault");
    assert_eq!((root.limits.bytes_in_flight, jobs(&root)), (64 << 20, (4, 2, 1)));
    assert_eq!(root.limits.store_deadline, Duration::from_secs(120));

    let user = read("", &user(), Purpose::Agent).unwrap();
    assert_eq!(user.state_dir, Path::new("/home/kim/.local/state/vaultferry"));
    assert_eq!(user.listen[0].to_string(), "unix:///run/user/1000/vaultferry/control.sock");
    let homeless = Surroundings::new(&[("XDG_STATE_HOME", "/s")], false);
    assert_eq!(read("", &homeless, Purpose::Agent).unwrap().listen[0].to_string(), "unix:///s/vaultferry/control.sock");
    assert!(read("", &Surroundings::default(), Purpose::Client).unwrap_err().message.contains("state_dir"));
}

#[test]
fn every_key_is_read() {
    let text = r#"
        state_dir = "/srv/state"
        listen = ["unix:///run/a.sock", "unix:///run/b.sock"]
        [vault]
        location = "azure://account/name"
        region = "koreacentral"
        [vault.azure]
        endpoint = "http://127.0.0.1:10000/account"
        credential = "access-key"
        access_key_env = "AZURE_STORAGE_KEY"
        [postgres]
        client_dirs = ["/usr/lib/postgresql/15/bin"]
        lock_timeout = "PT1M"
        lock_retries = 5
        [limits]
        bytes_in_flight = "128MiB"
        upload = "50MB/s"
        jobs = 8
        jobs_per_server = 3
        maintenance_jobs = 2
        store_deadline = "PT2M30S"
    "#;
    let settings = read(text, &Surroundings::new(&[KEY], true), Purpose::Agent).unwrap();
    assert_eq!(settings.state_dir, Path::new("/srv/state"));
    assert_eq!(settings.listen[1].path(), Path::new("/run/b.sock"));
    assert_eq!(settings.vault.region.as_deref(), Some("koreacentral"));
    assert_eq!(settings.postgres.client_dirs, [Path::new("/usr/lib/postgresql/15/bin")]);
    assert_eq!((settings.postgres.lock_timeout_s, settings.postgres.lock_retries), (Some(60), Some(5)));
    let json = r#"{"client_dirs":["/usr/lib/postgresql/15/bin"],"lock_timeout_s":60,"lock_retries":5}"#;
    assert_eq!(serde_json::to_string(&settings.postgres).unwrap(), json, "as the plugin reads it");
    assert_eq!((settings.limits.bytes_in_flight, jobs(&settings)), (128 << 20, (8, 3, 2)));
    assert_eq!(settings.limits.upload, Some(50_000_000));
    assert_eq!(settings.limits.store_deadline, Duration::from_secs(150));
    let azure = settings.vault.azure.as_ref().unwrap();
    assert_eq!(azure.credential, CredentialKind::AccessKey);
    assert_eq!(azure.secret.as_ref().unwrap().expose_secret(), KEY.1);
    assert!(!format!("{settings:?}").contains(KEY.1), "secrets redact themselves");
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = "listen = [\"unix:///run/a.sock\"]\n[limits]\njobs = 2";
    let variables = [
        ("VAULTFERRY__LIMITS__JOBS", "16"),
        ("VAULTFERRY__VAULT__LOCATION", "/srv/vault"),
        ("VAULTFERRY__LISTEN", "unix:///run/b.sock, unix:///run/c.sock"),
        ("VAULTFERRY__POSTGRES__CLIENT_DIRS", "/a,/b"),
        // Not keys of the configuration.
        ("VAULTFERRY_LOG", "debug"),
        ("VAULTFERRY_ENDPOINT", "unix:///x"),
        ("VAULTFERRY_CONFIG", "/x"),
    ];
    let settings = read(text, &Surroundings::new(&variables, true), Purpose::Agent).unwrap();
    assert_eq!(jobs(&settings), (16, 2, 1));
    assert_eq!(settings.location().to_string(), "/srv/vault");
    assert_eq!(settings.listen.len(), 2);
    assert_eq!(settings.postgres.client_dirs, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(faults("", &[("VAULTFERRY__LIMITS__JOB", "1")]).len(), 1, "unknown keys of the environment too");
    let text = "[postgres]\nsnapshot_budget = \"2h\"\nsnapshot_limit = \"36h\"\nddl_budget = \"30s\"\nyield_to_ddl = \"2m\"\n\
                read_limit = \"50MiB/s\"\nreplica_lag = \"10m\"";
    let settings = read(text, &user(), Purpose::Client).unwrap();
    let json = r#"{"client_dirs":[],"snapshot_budget_s":7200,"snapshot_limit_s":129600,"ddl_budget_s":30,"yield_to_ddl_s":120,"read_limit_bytes_per_s":52428800,"replica_lag_s":600}"#;
    assert_eq!(serde_json::to_string(&settings.postgres).unwrap(), json, "as the plugin reads it");
    for wrong in [
        "lock_timeout = \"0s\"",
        "lock_retries = -1",
        "lock_retries = 101",
        "snapshot_budget = \"0s\"",
        "snapshot_limit = \"31d\"",
        "yield_to_ddl = \"25h\"",
        "read_limit = \"50MiB\"",
        "read_limit = \"99KB/s\"",
    ] {
        assert_eq!(faults(&format!("[postgres]\n{wrong}"), &[]).len(), 1, "{wrong}");
    }
}

#[test]
fn machines_have_a_section() {
    let json = |text: &str| serde_json::to_string(&read(text, &user(), Purpose::Client).expect(text).vm).unwrap();
    assert_eq!(json(""), "{}");
    assert_eq!(json("[vm]\nprovider = \"auto\"\nfreeze = \"auto\""), "{}");
    let text = "[vm]\nprovider = \"reflink\"\nfreeze = [\"/mnt/a\", \"/mnt/b\"]\nfreeze_deadline = \"5s\"\n\
                on_freeze_failure = \"crash-consistent\"\nscripts = \"/etc/vaultferry/vm\"\nsample_percent = 5\n\
                read_limit = \"50MB/s\"";
    let expected = r#"{"provider":"reflink","freeze":["/mnt/a","/mnt/b"],"freeze_deadline_s":5,"on_freeze_failure":"crash-consistent","scripts":"/etc/vaultferry/vm","sample_percent":5,"read_limit_bytes_per_s":50000000}"#;
    assert_eq!(json(text), expected, "as the plugin reads it");
    assert_eq!(json("[vm]\nfreeze = []"), r#"{"freeze":[]}"#, "nothing is not everything");
    for wrong in [
        "provider = \"zfs\"",
        "freeze = [\"relative\"]",
        "freeze = [\"auto\", \"/mnt\"]",
        "freeze_deadline = \"61s\"",
        "on_freeze_failure = \"ignore\"",
        "scripts = \"here\"",
        "sample_percent = 101",
        "colour = \"blue\"",
    ] {
        assert_eq!(faults(&format!("[vm]\n{wrong}"), &[]).len(), 1, "{wrong}");
    }
}

#[test]
fn all_faults_are_told_in_one_go() {
    let text = r#"
        state_dirr = "/x"
        listen = ["https://0.0.0.0:7443", "unix://relative", 7]
        [vault]
        location = "relative/folder"
        colour = "blue"
        [limits]
        bytes_in_flight = "1MiB"
        upload = "50MB"
        jobs = 65
        jobs_per_server = 0
        maintenance_jobs = "many"
        store_deadline = "soon"
        [tls]
        cert = "/x"
        [http]
        listen = "127.0.0.1:7480"
    "#;
    let found = faults(text, &[]);
    let keys: Vec<&str> = found.iter().map(|fault| fault.split(':').next().unwrap()).collect();
    let expected = [
        "listen",
        "vault.location",
        "vault.colour",
        "limits.bytes_in_flight",
        "limits.upload",
        "limits.jobs",
        "limits.jobs_per_server",
        "limits.maintenance_jobs",
        "limits.store_deadline",
        "tls",
        "http",
        "state_dirr",
    ];
    assert_eq!(keys, expected, "{found:#?}");
    assert!(found[2].contains("location, region, azure"), "{}", found[2]);
    let found = faults("listen = [\"https://0.0.0.0:7443\", \"unix://relative\", \"unix:///a\", \"unix:///a\"]", &[]);
    assert_eq!(found.len(), 3);
    assert!(found[0].starts_with("listen[0]: this version has only unix sockets"), "{}", found[0]);
}

#[test]
fn the_credential_has_to_be_there_for_the_agent_only() {
    let text = "[vault]\nlocation = \"azure://account/name\"\n[vault.azure]\ncredential = \"sas\"";
    let found = faults(text, &[KEY]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("AZURE_STORAGE_SAS_TOKEN"), "{}", found[0]);
    let settings = read(text, &user(), Purpose::Client).unwrap();
    assert!(settings.vault.azure.unwrap().secret.is_none());
}

#[test]
fn azure_keys_belong_to_azure_locations() {
    assert_eq!(faults("[vault]\nlocation = \"azure://account/name\"", &[]).len(), 1);
    assert_eq!(faults("[vault]\nlocation = \"/srv\"\n[vault.azure]\ncredential = \"sas\"", &[]).len(), 1);
    let text = "[vault]\nlocation = \"azure://account/name\"\n[vault.azure]\ncredential = \"managed-identity\"";
    let found = faults(text, &[]);
    assert!(found.len() == 1 && found[0].contains("not supported yet"), "{found:?}");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    let secret = "abc/def+ghi==";
    let azure = "[vault]\nlocation = \"azure://account/name\"\n[vault.azure]\ncredential = \"access-key\"\n";
    for text in [
        format!("{azure}access_key_env = \"{secret}\""),
        format!("{azure}access_key_env = \"{secret}"),
        format!("{azure}endpoint = \"https://h/?sig={secret}\""),
        format!("[vault]\nlocation = \"azure://account/name?sig={secret}\""),
    ] {
        let problem = read(&text, &Surroundings::new(&[], true), Purpose::Agent).expect_err(&text);
        assert!(!format!("{problem:?}").contains("def+ghi"), "{problem}");
    }
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let found = faults("state_dir = \"/x\"\n[limits\njobs = 1", &[]);
    assert!(found.len() == 1 && found[0].starts_with("line 2"), "{found:?}");
}

#[test]
fn sizes_and_times() {
    for (text, bytes) in [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("500MB", 500_000_000), ("42", 42), ("7kib", 7168)] {
        assert_eq!(values::size(text), Ok(bytes), "{text}");
    }
    for text in ["", "MiB", "-1", "1.5GiB", "1 Gigabyte", "99999999999GiB"] {
        assert!(values::size(text).is_err(), "{text}");
    }
    for (text, seconds) in [("120s", 120), ("2m", 120), ("PT2M", 120), ("90", 90), ("24h", 86_400)] {
        assert_eq!(values::seconds(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["0", "-5s", "25h", "", "soon"] {
        assert!(values::seconds(text).is_err(), "{text}");
    }
    for (text, hours) in [("36h", 36), ("PT36H", 36), ("720h", 720)] {
        assert_eq!(values::long_time(text), Ok(Duration::from_secs(hours * 3600)), "{text}");
    }
    for text in ["0s", "721h", "later"] {
        assert!(values::long_time(text).is_err(), "{text}");
    }
}

#[test]
fn a_missing_file_is_a_fault_of_the_configuration() {
    let problem = load(Some(Path::new("/nonexistent/agent.toml")), &user(), Purpose::Client).unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidConfiguration);
    assert!(problem.message.contains("/nonexistent/agent.toml"));
}

#[test]
fn the_vault_key_is_in_a_file_or_in_key_vault() {
    let root = |variables: &[(&str, &str)]| Surroundings::new(variables, true);
    let place = |text: &str, variables: &[(&str, &str)]| {
        let settings = read(text, &root(variables), Purpose::Agent).unwrap();
        let place = settings.to_coordinator().unwrap().vault_key;
        assert!(!format!("{settings:?} {place:?}").contains("secret-token"), "secrets redact themselves");
        place.to_string()
    };
    assert_eq!(place("", &[]), "/var/lib/vaultferry/vault.key");
    assert_eq!(place("[vault.key]\nfile = \"/etc/vaultferry/vault.key\"", &[]), "/etc/vaultferry/vault.key");
    let key = "https://my.vault.azure.net/keys/backup";
    let token = ("KV_TOKEN", "secret-token");
    let text = format!("[vault.key]\nkey_vault = \"{key}\"\ntoken_env = \"KV_TOKEN\"");
    assert_eq!(place(&text, &[token]), key);
    assert_eq!(place(&format!("[vault.key]\nkey_vault = \"{key}\"\ntoken_file = \"/run/token\""), &[]), key);
    assert!(read(&text, &root(&[]), Purpose::Client).is_ok(), "a client needs no token");
    for (text, found) in [
        (text.as_str(), "vault.key.token_env: the environment has no variable"),
        ("[vault.key]\nfile = \"relative\"", "vault.key.file"),
        (
            "[vault.key]\nkey_vault = \"https://my.vault.azure.net/secrets/s\"\ntoken_file = \"/t\"",
            "vault.key.key_vault",
        ),
        ("[vault.key]\nkey_vault = \"https://my.vault.azure.net/keys/k\"", "vault.key: key_vault needs a token"),
        ("[vault.key]\ntoken_file = \"/t\"", "vault.key: a token is for key_vault only"),
        ("[vault.key]\ncolour = \"blue\"", "vault.key.colour: unknown key"),
        (
            "[vault.key]\nfile = \"/k\"\nkey_vault = \"https://my.vault.azure.net/keys/k\"\ntoken_file = \"/t\"",
            "vault.key: is in a file or in Key Vault",
        ),
    ] {
        let all = faults(text, &[]);
        assert!(all.len() == 1 && all[0].starts_with(found), "{text}: {all:?}");
    }
}

#[test]
fn the_backup_service_is_plain_on_this_machine_only() {
    let surroundings = Surroundings::new(&[("SERVICE_TOKEN", "s3cret")], true);
    assert!(read("", &surroundings, Purpose::Agent).unwrap().service.is_none());
    for endpoint in ["http://127.0.0.1:7500", "http://localhost:7500", "http://[::1]:7500", "https://backup.example"] {
        let text = format!("[service]\nendpoint = \"{endpoint}\"\ntoken_env = \"SERVICE_TOKEN\"");
        let settings = read(&text, &surroundings, Purpose::Agent).expect(endpoint);
        assert!(!format!("{settings:?}").contains("s3cret"), "secrets redact themselves");
        let link = settings.to_coordinator().unwrap().service.expect("a link");
        assert_eq!((link.endpoint.as_str(), link.token.unwrap().expose_secret()), (endpoint, "s3cret"));
    }
    let here = std::env::current_exe().unwrap().display().to_string();
    let files = format!("[service]\nendpoint = \"https://h:1\"\nca = \"{here}\"\ncert = \"{here}\"\nkey = \"{here}\"");
    let link = read(&files, &surroundings, Purpose::Agent).unwrap().to_coordinator().unwrap().service.unwrap();
    assert_eq!((link.ca.as_deref(), link.identity.is_some()), (Some(Path::new(&here)), true));
    for (text, found) in [
        ("[service]".to_owned(), "service.endpoint: is missing"),
        ("[service]\nendpoint = \"http://10.0.0.1:1\"".to_owned(), "service.endpoint: must be https://…"),
        ("[service]\nendpoint = \"https://u:p@h\"".to_owned(), "service.endpoint: must be https://host"),
        ("[service]\nendpoint = \"https://h/path\"".to_owned(), "service.endpoint: must be https://host"),
        ("[service]\nendpoint = \"unix:///x\"".to_owned(), "service.endpoint: must be https://host"),
        (format!("[service]\nendpoint = \"http://127.0.0.1:1\"\nca = \"{here}\""), "service.ca: is for"),
        (format!("[service]\nendpoint = \"https://h\"\ncert = \"{here}\""), "service: cert and key go together"),
        ("[service]\nendpoint = \"https://h\"\nca = \"/nonexistent\"".to_owned(), "service.ca: cannot be read"),
        ("[service]\nendpoint = \"https://h\"\ntoken_env = \"NONE\"".to_owned(), "service.token_env: the environment"),
        ("[service]\nendpoint = \"https://h\"\ncolour = \"blue\"".to_owned(), "service.colour: unknown key"),
    ] {
        let all = faults(&text, &[]);
        assert!(all.len() == 1 && all[0].starts_with(found), "{text}: {all:?}");
    }
    // A client of the agent needs none of it.
    let text = "[service]\nendpoint = \"https://h\"\nca = \"/nonexistent\"\ntoken_env = \"NONE\"";
    assert!(read(text, &Surroundings::new(&[], true), Purpose::Client).is_ok());
}

#[test]
fn the_way_out_is_named_without_secrets() {
    use vaultferry_coordinator::vault::network::{Credential, Settings as Network};

    assert_eq!(read("", &user(), Purpose::Agent).unwrap().network, Network::default());
    let text = "[network]\nproxy = \"http://proxy.corp:3128\"\nproxy_credential_env = \"PROXY_LOGIN\"\n\
                no_proxy = [\"corp\", \"10.0.0.0/8\"]\nca_file = \"/dev/null\"";
    let surroundings = Surroundings::new(&[("PROXY_LOGIN", "kim:geheim")], true);
    let network = read(text, &surroundings, Purpose::Agent).unwrap().network;
    let expected = Network {
        proxy: Some("http://proxy.corp:3128".to_owned()),
        credential: Some(Credential::Env("PROXY_LOGIN".to_owned())),
        no_proxy: vec!["corp".to_owned(), "10.0.0.0/8".to_owned()],
        ca_file: Some("/dev/null".into()),
    };
    assert_eq!(network, expected);
    assert_eq!(read(text, &user(), Purpose::Client).unwrap().network, expected, "a client needs no login");
    assert_eq!(
        faults(text, &[]),
        ["network.proxy_credential_env: the environment has no variable PROXY_LOGIN, or it is empty"]
    );
    for (wrong, key) in [
        ("proxy = \"https://proxy:1\"", "network.proxy: must be http://host:port"),
        ("proxy = \"http://kim:geheim@proxy:1\"", "network.proxy: must not hold a login"),
        ("proxy_credential_file = \"/dev/null\"", "network: a proxy's credential needs"),
        ("proxy = \"none\"\nproxy_credential_file = \"/dev/null\"", "network: a proxy's credential needs"),
        ("no_proxy = [\"http://x\"]", "network.no_proxy: "),
        ("ca_file = \"/does/not/exist\"", "network.ca_file: cannot be read"),
        ("prxy = \"none\"", "network.prxy: unknown key"),
    ] {
        let faults = faults(&format!("[network]\n{wrong}"), &[]);
        assert!(
            faults.len() == 1 && faults[0].starts_with(key) && !faults[0].contains("geheim"),
            "{wrong}: {faults:?}"
        );
    }
}
