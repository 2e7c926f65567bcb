//! Each stage's failure, at listeners of this machine. The names of this machine never take a proxy, so where one is needed the vault is called
//! `vault.invalid`, which the proxy alone can know.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use vaultferry_tests::fake_service::Pki;
use vaultferry_vault::network::{Credential, Settings, Surroundings};

use super::*;

/// An answer of the storage to a question without a credential.
const STORAGE: &str = "HTTP/1.1 403 Forbidden\r\nx-ms-request-id: 1\r\ncontent-length: 0\r\n\r\n";
/// What an answer of a firewall's page looks like.
const PAGE: &str = "HTTP/1.1 200 OK\r\nserver: blockpage\r\ncontent-length: 0\r\n\r\n";
/// Somebody's login, in a variable.
const LOGIN: (&str, &str) = ("PROXY_LOGIN", "kim:geheim");

fn limits() -> Limits {
    Limits { name: Duration::from_secs(20), connect: Duration::from_secs(2), answer: Duration::from_secs(2) }
}

/// Serves each connection by the function; its port.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || answer(stream));
        }
    });
    port
}

/// Reads a question's head.
fn question(mut stream: &TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0_u8]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Answers every question with this.
fn answering(text: &'static str) -> u16 {
    serve(move |mut stream| {
        question(&stream);
        let _ = stream.write_all(text.as_bytes());
    })
}

/// Passes on to `port` what has the login (any, when none is wanted), whatever name was asked for.
fn proxy(port: u16, login: Option<&'static str>) -> u16 {
    serve(move |mut stream| {
        let head = question(&stream);
        let wanted = login.map(|login| format!("Proxy-Authorization: Basic {login}\r\n"));
        if wanted.is_some_and(|wanted| !head.contains(&wanted)) {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
            let _ = stream.write_all(refusal.as_bytes());
            return;
        }
        let Ok(mut onward) = TcpStream::connect(("127.0.0.1", port)) else {
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
            return;
        };
        if head.starts_with("CONNECT ") {
            let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
        } else {
            let _ = onward.write_all(head.as_bytes());
        }
        let (mut from, mut to) = (stream.try_clone().expect("cloned"), onward.try_clone().expect("cloned"));
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut onward, &mut stream);
    })
}

/// A storage behind TLS, with the certificate of 127.0.0.1.
fn tls_storage(pki: &Pki) -> u16 {
    let (certificate, key) = pki.service();
    let certificates =
        CertificateDer::pem_file_iter(certificate).expect("PEM").map(|each| each.expect("one")).collect();
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("a certificate");
    let config = Arc::new(config);
    serve(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("a connection");
        let mut stream = rustls::StreamOwned::new(connection, stream);
        let (mut head, mut byte) = (Vec::new(), [0_u8]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            head.push(byte[0]);
        }
        let _ = stream.write_all(STORAGE.as_bytes());
        stream.conn.send_close_notify();
        let _ = stream.flush();
    })
}

fn network(settings: &Settings) -> Network {
    Network::new(settings, &Surroundings::new(&[LOGIN], "", "")).expect("right settings")
}

fn by_proxy(port: u16, credential: bool) -> Network {
    network(&Settings {
        proxy: Some(format!("http://127.0.0.1:{port}")),
        credential: credential.then(|| Credential::Env(LOGIN.0.to_owned())),
        ..Settings::default()
    })
}

async fn way(endpoint: &str, network: &Network) -> Diagnosis {
    let endpoint = Url::parse(endpoint).expect("a url");
    diagnose(&endpoint, network, limits(), &CancellationToken::new()).await.expect("a diagnosis")
}

/// The way ends there, and says these words.
#[track_caller]
fn ends(diagnosis: &Diagnosis, stage: Stage, words: &str) {
    let failure = diagnosis.failure.as_ref().unwrap_or_else(|| panic!("nothing is in the way: {diagnosis:?}"));
    assert!(failure.stage == stage && failure.message.contains(words), "{diagnosis:?}");
    let problem = diagnosis.problem(&Place::default()).expect("a problem");
    assert_eq!(problem.reason, Reason::ExtensionSnapshotFailedNoNetwork);
    assert!(problem.message.contains(&format!("{stage}: ")) && !problem.fix.is_empty(), "{problem:?}");
    assert!(!format!("{diagnosis:?} {problem:?}").contains("geheim"), "{diagnosis:?}");
}

fn stages(diagnosis: &Diagnosis) -> Vec<Stage> {
    diagnosis.steps.iter().map(|step| step.stage).collect()
}

#[tokio::test]
async fn a_storage_that_answers() {
    let port = answering(STORAGE);
    let found = way(&format!("http://127.0.0.1:{port}/account"), &Network::default()).await;
    assert_eq!((found.failure.clone(), stages(&found)), (None, vec![Stage::Tcp, Stage::Http]), "{found:?}");
    assert!(found.problem(&Place::default()).is_none());
    let found = way(&format!("http://localhost:{port}/"), &Network::default()).await;
    assert_eq!(stages(&found), [Stage::Dns, Stage::Tcp, Stage::Http], "{found:?}");
}

#[tokio::test]
async fn a_name_without_an_address() {
    let found = way("https://vault.invalid/", &Network::default()).await;
    ends(&found, Stage::Dns, "vault.invalid");
    let settings = Settings { proxy: Some("http://proxy.invalid:3128".to_owned()), ..Settings::default() };
    ends(&way("https://vault.invalid/", &network(&settings)).await, Stage::Dns, "the proxy's name proxy.invalid");
}

#[tokio::test]
async fn a_port_that_refuses() {
    let port = vaultferry_tests::free_port();
    let found = way(&format!("http://127.0.0.1:{port}/"), &Network::default()).await;
    ends(&found, Stage::Tcp, "refuses connections");
    assert!(found.rule(&Place::default()).is_none(), "a security group does not refuse");
    ends(&way("http://vault.invalid/", &by_proxy(port, false)).await, Stage::Tcp, "the proxy is not reached");
}

/// A queue that is full drops what more comes, as a security group does.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_port_that_is_silent_lacks_a_rule() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("a length")).expect("a short queue");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 64, "the queue takes everybody");
    }
    let began = std::time::Instant::now();
    let found = way(&format!("https://{address}/"), &Network::default()).await;
    ends(&found, Stage::Tcp, "does not answer within 2 s");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let place = Place { region: Some("koreacentral".to_owned()), deny_priority: Some(150), ..Place::default() };
    let problem = found.problem(&place).expect("a problem");
    assert!(
        problem.fix.contains("az network nsg rule create") && problem.fix.contains("--priority 149"),
        "{problem:?}"
    );
    assert!(problem.fix.contains("Storage.koreacentral --destination-port-ranges 443"), "{problem:?}");
}

#[tokio::test]
async fn a_certificate_that_nobody_knows_and_one_of_another_name() {
    let pki = Pki::make();
    let port = tls_storage(&pki);
    let endpoint = format!("https://127.0.0.1:{port}/");
    let found = way(&endpoint, &Network::default()).await;
    ends(&found, Stage::Tls, "signed by nobody whom this machine trusts");
    let known = network(&Settings { ca_file: Some(pki.ca()), ..Settings::default() });
    let found = way(&endpoint, &known).await;
    assert_eq!((found.failure.clone(), stages(&found)), (None, vec![Stage::Tcp, Stage::Tls, Stage::Http]), "{found:?}");
    ends(&way(&format!("https://localhost:{port}/"), &known).await, Stage::Tls, "another name's");
}

#[tokio::test]
async fn a_port_that_speaks_no_tls_or_nothing() {
    // At once: it would wait for the end of a question that TLS does not have.
    let port = serve(|mut stream| {
        let _ = stream.write_all(PAGE.as_bytes());
    });
    let found = way(&format!("https://127.0.0.1:{port}/"), &Network::default()).await;
    assert_eq!(found.failure.as_ref().map(|failure| failure.stage), Some(Stage::Tls), "{found:?}");
    assert!(found.rule(&Place::default()).is_none(), "it answers, so no group stands in the way: {found:?}");
    let silent = serve(|stream| {
        thread::sleep(Duration::from_secs(30));
        drop(stream);
    });
    let found = way(&format!("https://127.0.0.1:{silent}/"), &Network::default()).await;
    ends(&found, Stage::Tls, "no answer");
    assert!(found.rule(&Place::default()).is_some(), "silence is what a group makes: {found:?}");
    ends(&way(&format!("http://127.0.0.1:{silent}/"), &Network::default()).await, Stage::Http, "nothing came");
}

#[tokio::test]
async fn somebody_else_and_a_storage_in_trouble() {
    let found = way(&format!("http://127.0.0.1:{}/", answering(PAGE)), &Network::default()).await;
    ends(&found, Stage::Http, "somebody else answers in the storage's place (200, server \"blockpage\")");
    let broken = answering("HTTP/1.1 503 Busy\r\nx-ms-request-id: 1\r\n\r\n");
    ends(&way(&format!("http://127.0.0.1:{broken}/"), &Network::default()).await, Stage::Http, "(503)");
    let nonsense = answering("SSH-2.0-OpenSSH\r\n\r\n");
    ends(&way(&format!("http://127.0.0.1:{nonsense}/"), &Network::default()).await, Stage::Http, "no HTTP");
}

#[tokio::test]
async fn a_proxy_that_wants_a_login() {
    // printf kim:geheim | base64
    const RIGHT: &str = "a2ltOmdlaGVpbQ==";
    let pki = Pki::make();
    let (plain, tls) = (answering(STORAGE), tls_storage(&pki));
    for (endpoint, port) in [("http://vault.invalid/", plain), ("https://vault.invalid/", tls)] {
        let strict = proxy(port, Some(RIGHT));
        ends(&way(endpoint, &by_proxy(strict, false)).await, Stage::Proxy, "wants a login");
        ends(&way(endpoint, &by_proxy(proxy(port, Some("another")), true)).await, Stage::Proxy, "refuses the login");
    }
    let found = way("http://vault.invalid/", &by_proxy(proxy(plain, Some(RIGHT)), true)).await;
    assert_eq!((found.failure.clone(), stages(&found)), (None, vec![Stage::Tcp, Stage::Http]), "{found:?}");
    // The tunnel stands, and what is at its end shows the certificate of another name.
    let found = way("https://vault.invalid/", &by_proxy(proxy(tls, Some(RIGHT)), true)).await;
    assert_eq!(stages(&found), [Stage::Tcp, Stage::Proxy], "{found:?}");
    assert_eq!(found.failure.as_ref().map(|failure| failure.stage), Some(Stage::Tls));
}

#[tokio::test]
async fn a_proxy_that_refuses_or_cannot() {
    let refusing = answering("HTTP/1.1 403 Forbidden\r\n\r\n");
    for endpoint in ["http://vault.invalid/", "https://vault.invalid/"] {
        ends(&way(endpoint, &by_proxy(refusing, false)).await, Stage::Proxy, "does not let us through");
        let cut_off = proxy(vaultferry_tests::free_port(), None);
        let found = way(endpoint, &by_proxy(cut_off, false)).await;
        ends(&found, Stage::Proxy, "does not reach vault.invalid");
        let rule = found.rule(&Place::default()).expect("a rule may be missing").expect("a rule");
        assert_eq!((rule.destination.as_str(), rule.source.as_str()), ("Internet", "127.0.0.1/32"));
    }
}

#[tokio::test]
async fn a_jobs_problem_is_told_more_exactly_only_when_the_network_is_at_fault() {
    let cancel = CancellationToken::new();
    let location = Location::Azure { account: "account".to_owned(), name: "vault".to_owned() };
    let access = |port: u16| Access {
        location: location.clone(),
        endpoint: Url::parse(&format!("http://127.0.0.1:{port}/")).ok(),
        credential: None,
        store_deadline: Duration::from_secs(1),
    };
    let lost = Problem::new(Reason::VaultUnavailable, "the store did not answer");
    let closed = access(vaultferry_tests::free_port());
    let told = explain(lost.clone(), &closed, &Place::default(), &cancel).await;
    assert_eq!(told.reason, Reason::ExtensionSnapshotFailedNoNetwork);
    assert!(told.message.contains("refuses connections") && told.message.contains(&lost.message), "{told:?}");
    assert_eq!(explain(lost.clone(), &access(answering(STORAGE)), &Place::default(), &cancel).await, lost);
    let other = Problem::new(Reason::VaultAccessDenied, "no");
    assert_eq!(explain(other.clone(), &closed, &Place::default(), &cancel).await, other);
    let folder = Access { location: Location::Folder("/srv".into()), ..closed };
    assert_eq!(explain(lost.clone(), &folder, &Place::default(), &cancel).await, lost);
}
