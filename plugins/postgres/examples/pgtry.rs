#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::print_stdout)]
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::workload_plugin_client::WorkloadPluginClient;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::repository::{FileKind, Repository};

const ID: &str = "0123456789abcdef0123456789abcdef";
const PASSWORD: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn access(vault: &str) -> vaultferry_vault::location::Access {
    vaultferry_vault::location::Access {
        location: vault.parse().unwrap(),
        endpoint: None,
        credential: None,
        store_deadline: Duration::from_secs(30),
    }
}
fn source(uri: &str) -> proto::Source {
    proto::Source {
        uri: uri.into(),
        passfile: std::env::var("TRY_PASSFILE").unwrap_or_default(),
        password_env: std::env::var("TRY_ENV").unwrap_or_default(),
    }
}
fn vault(vault: &str) -> proto::VaultAccess {
    proto::VaultAccess {
        location: vault.into(),
        instance_id: ID.into(),
        credential: None,
        repository_password: PASSWORD.into(),
        bytes_in_flight: 0,
        store_deadline_s: 0,
    }
}
fn settings() -> String {
    std::env::var("TRY_SETTINGS").unwrap_or_default()
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let cancel = CancellationToken::new();
    match args[1].as_str() {
        "plugin" => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_env_filter("info,vaultferry_plugin_sdk=debug")
                .init();
            if let Err(error) = vaultferry_plugin_sdk::serve(vaultferry_plugin_postgres::Postgres).await {
                eprintln!("{}", vaultferry_proto::status::chain(&error));
                std::process::exit(1);
            }
            return;
        }
        "init" => {
            let access = access(&args[2]);
            access.create_root().await.unwrap();
            access.create_instance(ID).await.unwrap();
            Repository::init(access.open_instance(ID).unwrap(), &SecretString::from(PASSWORD), &cancel).await.unwrap();
            return;
        }
        _ => {}
    }
    let dir = std::env::temp_dir().join(format!("pgtry-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("plugin")
        .env("VAULTFERRY_PLUGIN_DIR", &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    println!("plugin pid {}", child.id());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let endpoint = line.trim().strip_prefix("vaultferry-plugin|1|").unwrap().to_owned();
    let channel = tonic::transport::Endpoint::try_from(endpoint).unwrap().connect().await.unwrap();
    let mut client = WorkloadPluginClient::new(channel);
    let cancel_after = std::env::var("TRY_CANCEL_MS").ok().map(|ms| Duration::from_millis(ms.parse().unwrap()));
    let eof_after = std::env::var("TRY_EOF_MS").ok().map(|ms| Duration::from_millis(ms.parse().unwrap()));
    let job_id = std::env::var("TRY_JOB").unwrap_or("0190a7e4-1111-7222-8333-123456789abc".into());
    let begin = Instant::now();
    let mut stdin = child.stdin.take();
    let work = async {
        match args[1].as_str() {
            "validate" => {
                let request = proto::ValidateRequest { source: Some(source(&args[2])), settings_json: settings() };
                let answer = client.validate(request).await?;
                println!("{:?}", answer.into_inner());
            }
            "backup" => {
                let request = proto::BackupRequest {
                    job_id,
                    instance_name: "try".into(),
                    source: Some(source(&args[3])),
                    vault: Some(vault(&args[2])),
                    settings_json: settings(),
                    compression_level: 0,
                    tags: vec!["job=1".into()],
                };
                let mut events = client.backup(request).await?.into_inner();
                let mut packs = 0;
                while let Some(event) = events.message().await? {
                    use proto::backup_event::Event;
                    match event.event.unwrap() {
                        Event::StagedPacks(p) => packs += p.packs.len(),
                        Event::Staged(staged) => {
                            assert_eq!(packs as u64, staged.pack_count);
                            let store = access(&args[2]).open_instance(ID).unwrap();
                            store
                                .put_if_absent(
                                    &FileKind::Snapshot.key(&staged.snapshot_id.parse().unwrap()),
                                    staged.sealed_snapshot.clone().into(),
                                )
                                .await
                                .unwrap();
                            println!(
                                "{:?} STAGED {} packs {} source {} stored {} streams {:?}",
                                begin.elapsed(),
                                staged.snapshot_id,
                                packs,
                                staged.source_bytes,
                                staged.stored_bytes,
                                staged.streams
                            );
                        }
                        other => println!("{:?} {other:?}", begin.elapsed()),
                    }
                }
            }
            "restore-db" | "restore-files" => {
                use proto::restore_request::Target;
                let target = if args[1] == "restore-db" {
                    Target::Database(proto::DatabaseTarget {
                        server: Some(source(&args[4])),
                        database: args[5].clone(),
                        no_owner: args.get(6).is_some(),
                    })
                } else {
                    Target::Files(proto::FilesTarget { to: args[4].clone(), credential: None })
                };
                let request = proto::RestoreRequest {
                    job_id,
                    snapshot_id: args[3].clone(),
                    vault: Some(vault(&args[2])),
                    settings_json: settings(),
                    target: Some(target),
                };
                let mut events = client.restore(request).await?.into_inner();
                while let Some(event) = events.message().await? {
                    println!("{:?} {:?}", begin.elapsed(), event.event.unwrap());
                }
            }
            "cleanup-db" => {
                use proto::clean_up_request::Target;
                let target = Target::Database(proto::DatabaseTarget {
                    server: Some(source(&args[2])),
                    database: "x".into(),
                    no_owner: false,
                });
                client
                    .clean_up(proto::CleanUpRequest { job_id, settings_json: settings(), target: Some(target) })
                    .await?;
            }
            _ => panic!(),
        }
        Ok::<(), tonic::Status>(())
    };
    let result = tokio::select! {
        result = work => Some(result),
        _ = async { match cancel_after { Some(d) => tokio::time::sleep(d).await, None => std::future::pending().await } } => None,
        _ = async { match eof_after { Some(d) => tokio::time::sleep(d).await, None => std::future::pending().await } } => { stdin = None; None }
    };
    match result {
        Some(Ok(())) => println!("{:?} OK", begin.elapsed()),
        Some(Err(status)) => {
            let p = Problem::from_status(&status, Reason::PluginCrashed);
            println!("{:?} FAILED {} | {} | FIX {}", begin.elapsed(), p.reason, p.message, p.fix);
        }
        None => {
            println!("{:?} CANCELLED/EOF", begin.elapsed());
            if let Some(ms) = cancel_after {
                tokio::time::sleep(ms.max(Duration::from_secs(3))).await;
            }
        }
    }
    drop(stdin);
    let status = child.wait().unwrap();
    println!(
        "{:?} plugin ended {status}; socket dir: {:?}",
        begin.elapsed(),
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
    );
    let _ = std::fs::remove_dir_all(&dir);
}
