//! The stages themselves, one after the other, in a thread that may block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use url::{Host, Url};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::network::{Network, Proxy, authority};
use zeroize::Zeroizing;

use super::{Diagnosis, Failure, Limits, Missing, Stage, Step};

/// Of a name's addresses so many are tried: more than that are behind one address in practice.
const MOST_ADDRESSES: usize = 4;
/// A longer head of an answer is none.
const LARGEST_HEAD: usize = 16 << 10;
/// All answers of one connection together may take so many times the limit of one: proxy, TLS, HTTP, and one to spare.
const ANSWERS: u32 = 4;
/// What a server says of itself is cut here.
const WORDS: usize = 80;

/// Goes the way. Errors: [`Reason::Internal`] when this machine cannot even begin.
pub(super) fn run(endpoint: &Url, network: &Network, limits: Limits) -> Result<Diagnosis, Problem> {
    let target = authority(endpoint).ok_or_else(|| internal("the vault's address has no host"))?;
    let proxy = network.proxy_for(endpoint);
    let shown = proxy.map(|proxy| (proxy.url().to_string(), proxy.origin().to_owned()));
    let mut way = Way { endpoint, target: &target, proxy, network, limits, steps: Vec::new() };
    let failure = match way.go() {
        Ok(()) => None,
        Err(End::Failure(failure)) => Some(*failure),
        Err(End::Internal(problem)) => return Err(problem),
    };
    let steps = way.steps;
    Ok(Diagnosis { target, proxy: shown, steps, failure })
}

fn internal(message: impl Into<String>) -> Problem {
    Problem::new(Reason::Internal, message)
}

/// Why the way was not gone to its end.
enum End {
    Failure(Box<Failure>),
    Internal(Problem),
}

impl End {
    fn at(stage: Stage, message: impl Into<String>, fix: impl Into<String>, missing: Missing) -> Self {
        Self::Failure(Box::new(Failure { stage, message: message.into(), fix: fix.into(), missing }))
    }
}

struct Way<'a> {
    endpoint: &'a Url,
    target: &'a str,
    proxy: Option<&'a Proxy>,
    network: &'a Network,
    limits: Limits,
    steps: Vec<Step>,
}

/// A connection, with TLS in it or without.
trait Line: Read + Write {}
impl<T: Read + Write> Line for T {}

/// A connection that is silent for `each` at most, and is over at `until`: one that trickles in the middle of TLS would hold us for ever.
struct Timed {
    stream: TcpStream,
    each: Duration,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now()).min(self.each);
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Way<'_> {
    fn pass(&mut self, stage: Stage, began: Instant, detail: impl Into<String>) {
        self.steps.push(Step { stage, detail: detail.into(), took: began.elapsed() });
    }

    /// What a security group lacks when nothing comes back.
    fn missing(&self) -> Missing {
        if self.proxy.is_some() { Missing::Nothing } else { Missing::ToVault }
    }

    fn go(&mut self) -> Result<(), End> {
        let next = self.proxy.map_or(self.endpoint, Proxy::url);
        let addresses = self.dns(next)?;
        let stream = self.tcp(next, &addresses)?;
        let is_tls = self.endpoint.scheme() == "https";
        let stream = match self.proxy {
            Some(proxy) if is_tls => self.tunnel(proxy, stream)?,
            _ => stream,
        };
        let mut line: Box<dyn Line> = if is_tls { Box::new(self.tls(stream)?) } else { Box::new(stream) };
        self.http(line.as_mut())
    }

    /// An address is none to be asked for. The system's resolver knows no time limit: it is asked by a thread that may be left behind.
    fn dns(&mut self, next: &Url) -> Result<Vec<SocketAddr>, End> {
        let (Some(host), Some(port)) = (next.host(), next.port_or_known_default()) else {
            return Err(End::Internal(internal("the address has no host")));
        };
        let name = match host {
            Host::Ipv4(address) => return Ok(vec![SocketAddr::from((address, port))]),
            Host::Ipv6(address) => return Ok(vec![SocketAddr::from((address, port))]),
            Host::Domain(name) => name.to_owned(),
        };
        let began = Instant::now();
        let whose = if self.proxy.is_some() { "proxy" } else { "vault" };
        let fix = format!(
            "Look at the name, and at /etc/resolv.conf: getent hosts {name}. In Azure the resolver is 168.63.129.16, or your network's own; a \
             private endpoint needs its zone (privatelink.blob.core.windows.net) linked to this network."
        );
        let failed = |detail: String| End::at(Stage::Dns, detail, fix.clone(), Missing::Nothing);
        let (sender, receiver) = mpsc::channel();
        let asked = name.clone();
        let ask = move || {
            // An error means that nobody waits any more.
            let _ = sender.send((asked.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
        };
        std::thread::Builder::new()
            .name("network-check-dns".into())
            .spawn(ask)
            .map_err(|error| End::Internal(internal(format!("cannot start a thread: {error}"))))?;
        let mut addresses = match receiver.recv_timeout(self.limits.name) {
            Err(_) => {
                let waited = self.limits.name.as_secs_f64();
                return Err(failed(format!(
                    "the resolver did not answer for the {whose}'s name {name} within {waited} s"
                )));
            }
            Ok(Err(error)) => return Err(failed(format!("the {whose}'s name {name} has no address: {error}"))),
            Ok(Ok(addresses)) if addresses.is_empty() => {
                return Err(failed(format!("the {whose}'s name {name} has no address")));
            }
            Ok(Ok(addresses)) => addresses,
        };
        addresses.truncate(MOST_ADDRESSES);
        let list: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        self.pass(Stage::Dns, began, format!("{name} is {}", list.join(", ")));
        Ok(addresses)
    }

    fn tcp(&mut self, next: &Url, addresses: &[SocketAddr]) -> Result<Timed, End> {
        let began = Instant::now();
        let mut last: Option<(SocketAddr, io::Error)> = None;
        for address in addresses {
            match self.connect(address) {
                Ok(stream) => {
                    self.pass(Stage::Tcp, began, format!("{address} answers"));
                    return Ok(stream);
                }
                // A silence is what is told, also when another address fails in a way of its own: it is what can be mended.
                Err(_) if last.as_ref().is_some_and(|(_, error)| is_silence(error.kind())) => {}
                Err(error) => last = Some((*address, error)),
            }
        }
        let (address, error) = last.ok_or_else(|| End::Internal(internal("there is no address to connect to")))?;
        let (whose, answers) = match self.proxy {
            Some(_) => (
                "the proxy",
                "Look whether the proxy runs and listens there, and lets this machine in (V48: its inbound firewall).",
            ),
            None => (
                "the vault",
                "Outbound access to the vault must be allowed: by a security group's rule, by a proxy ([network] proxy), or by a firewall's FQDN tag.",
            ),
        };
        let host = authority(next).unwrap_or_default();
        let message = match error.kind() {
            ErrorKind::ConnectionRefused => {
                format!("{host} ({address}) refuses connections: nobody listens, or a firewall rejects them")
            }
            kind if is_silence(kind) => {
                let waited = self.limits.connect.as_secs_f64();
                format!(
                    "{host} ({address}) does not answer within {waited} s: a firewall or a security group drops what goes there"
                )
            }
            _ => format!("{host} ({address}) cannot be connected to: {error}"),
        };
        let missing = if is_silence(error.kind()) { self.missing() } else { Missing::Nothing };
        Err(End::at(Stage::Tcp, format!("{whose} is not reached: {message}"), answers, missing))
    }

    fn connect(&self, address: &SocketAddr) -> io::Result<Timed> {
        let stream = TcpStream::connect_timeout(address, self.limits.connect)?;
        stream.set_write_timeout(Some(self.limits.answer))?;
        Ok(Timed { stream, each: self.limits.answer, until: Instant::now() + ANSWERS * self.limits.answer })
    }

    /// Asks the proxy for a way to the vault.
    fn tunnel(&mut self, proxy: &Proxy, mut stream: Timed) -> Result<Timed, End> {
        let began = Instant::now();
        let mut question = Zeroizing::new(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.target));
        authorize(&mut question, proxy);
        question.push_str("\r\n");
        let head = ask(&mut stream, &question, self.limits.answer).map_err(|error| {
            let fix = "Look at what listens there: it has to be an HTTP proxy that lets CONNECT through.";
            End::at(
                Stage::Proxy,
                format!("the proxy gives no answer to CONNECT {}: {error}", self.target),
                fix,
                Missing::Nothing,
            )
        })?;
        if (200..300).contains(&head.status) {
            self.pass(Stage::Proxy, began, format!("lets us through to {}", self.target));
            return Ok(stream);
        }
        Err(self.refused_by_proxy(proxy, &head))
    }

    fn refused_by_proxy(&self, proxy: &Proxy, head: &Head) -> End {
        let at = |message: String, fix: &str, missing| End::at(Stage::Proxy, message, fix, missing);
        match (head.status, proxy.authorization().is_some()) {
            (407, false) => at(
                "the proxy wants a login (407), and none is configured".to_owned(),
                "Name one: [network] proxy_credential_env or proxy_credential_file, which holds user:password.",
                Missing::Nothing,
            ),
            (407, true) => {
                let offered = head.header("proxy-authenticate").and_then(|value| value.split(' ').next());
                let offered = offered.unwrap_or("nothing").chars().take(WORDS).collect::<String>();
                at(
                    format!("the proxy refuses the login (407; it takes {offered})"),
                    "Correct user and password where the credential is. Only Basic is known here, not NTLM or Negotiate.",
                    Missing::Nothing,
                )
            }
            (502..=504, _) => at(
                format!("the proxy does not reach {} ({})", self.target, head.status),
                "Look at the proxy's own way out: its name server, and what its network lets out.",
                Missing::OfProxy,
            ),
            (status, _) => at(
                format!("the proxy does not let us through to {} ({status})", self.target),
                "Allow this machine the vault's address on the proxy: *.blob.core.windows.net, or the one account alone.",
                Missing::Nothing,
            ),
        }
    }

    fn tls(&mut self, mut stream: Timed) -> Result<StreamOwned<ClientConnection, Timed>, End> {
        let began = Instant::now();
        let host = self.endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let config = Arc::new(self.tls_config()?);
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| End::Internal(internal(format!("{host} is no name of a server"))))?;
        let connection = ClientConnection::new(config, name);
        let mut connection =
            connection.map_err(|error| End::Internal(internal(format!("TLS cannot begin: {error}"))))?;
        while connection.is_handshaking() {
            match connection.complete_io(&mut stream) {
                // The other side has closed the connection without a word.
                Ok((0, 0)) => return Err(self.broken_tls(&io::Error::from(ErrorKind::UnexpectedEof))),
                Ok(_) => {}
                Err(error) => return Err(self.failed_tls(&host, &error)),
            }
        }
        let version = connection.protocol_version().map_or_else(|| "TLS".to_owned(), |version| format!("{version:?}"));
        self.pass(Stage::Tls, began, format!("the certificate of {host} is trusted ({version})"));
        Ok(StreamOwned::new(connection, stream))
    }

    /// Trusts what the product's clients trust: the system's authorities, and ca_file's.
    fn tls_config(&self) -> Result<ClientConfig, End> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(pem) = self.network.authorities_pem() {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
        }
        // Given explicitly: no process-wide default is needed, and none can be the wrong one.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| End::Internal(internal(format!("TLS cannot begin: {error}"))))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }

    fn failed_tls(&self, host: &str, error: &io::Error) -> End {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(fault)) = inner else { return self.broken_tls(error) };
        let at = |message: String, fix: String| End::at(Stage::Tls, message, fix, Missing::Nothing);
        match fault {
            CertificateError::UnknownIssuer => at(
                format!("the certificate that is shown for {host} is signed by nobody whom this machine trusts"),
                "If a proxy or a firewall opens TLS here, or the store has an authority of its own: name the authority's certificate (PEM) with \
                 [network] ca_file. Otherwise somebody stands in between."
                    .to_owned(),
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => at(
                format!("the certificate that is shown is another name's, not {host}'s"),
                "Look at where the name leads: an address of its own in /etc/hosts, or a firewall that answers for others.".to_owned(),
            ),
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => at(
                format!("the certificate of {host} is not valid now"),
                "Look at this machine's clock (timedatectl), then at the certificate's dates.".to_owned(),
            ),
            other => at(
                format!("the certificate of {host} cannot be used: {other}"),
                "Look at the certificate: openssl s_client -connect HOST:PORT -showcerts.".to_owned(),
            ),
        }
    }

    fn broken_tls(&self, error: &io::Error) -> End {
        let what = match error.kind() {
            kind if is_silence(kind) => {
                format!("no answer to the first words of TLS within {} s", self.limits.answer.as_secs_f64())
            }
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "the connection is closed at the first words of TLS".to_owned()
            }
            _ => format!("TLS does not come about: {error}"),
        };
        let fix = "Something on the way lets connections begin and no more: look at firewalls that inspect TLS, at the path's MTU, and whether \
                   the address of the vault is https at all.";
        let missing = if is_silence(error.kind()) { self.missing() } else { Missing::Nothing };
        End::at(Stage::Tls, what, fix, missing)
    }

    /// One question without a credential: the storage refuses it, which proves that it is there.
    fn http(&mut self, line: &mut dyn Line) -> Result<(), End> {
        let began = Instant::now();
        let plain_proxy = self.proxy.filter(|_| self.endpoint.scheme() == "http");
        // An emulator's has the account in it.
        let path = self.endpoint.path().trim_end_matches('/');
        let place = if plain_proxy.is_some() { format!("http://{}", self.target) } else { String::new() };
        let mut question = Zeroizing::new(format!(
            "GET {place}{path}/?comp=list HTTP/1.1\r\nHost: {}\r\nUser-Agent: vaultferry-network-check\r\nConnection: close\r\n",
            self.target
        ));
        if let Some(proxy) = plain_proxy {
            authorize(&mut question, proxy);
        }
        question.push_str("\r\n");
        let head = ask(line, &question, self.limits.answer).map_err(|error| {
            let fix = "Something on the way takes the connection and gives nothing back: look at firewalls and proxies that inspect what passes.";
            End::at(Stage::Http, format!("{} gives no answer to a question: {error}", self.target), fix, Missing::Nothing)
        })?;
        let is_storage = head.headers.iter().any(|(name, _)| name.starts_with("x-ms-"));
        if !is_storage
            && let Some(proxy) = plain_proxy
            && matches!(head.status, 403 | 407 | 502..=504)
        {
            return Err(self.refused_by_proxy(proxy, &head));
        }
        match (is_storage, head.status) {
            (true, status @ 500..) => Err(End::at(
                Stage::Http,
                format!("the storage answers with an error of its own ({status})"),
                "Try again later; look at https://status.azure.com.",
                Missing::Nothing,
            )),
            (true, status) => {
                self.pass(
                    Stage::Http,
                    began,
                    format!("the storage answers ({status}, to a question without a credential)"),
                );
                Ok(())
            }
            (false, status) => {
                let server = head.header("server").unwrap_or("nameless").chars().take(WORDS).collect::<String>();
                Err(End::at(
                    Stage::Http,
                    format!("somebody else answers in the storage's place ({status}, server {server:?})"),
                    "A firewall's or a proxy's page stands in between, or the endpoint is not a storage account's: allow the address there, or \
                     correct [vault.azure] endpoint.",
                    Missing::Nothing,
                ))
            }
        }
    }
}

/// Both are what a time limit looks like, depending on the system and the call.
fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn authorize(question: &mut String, proxy: &Proxy) {
    if let Some(value) = proxy.authorization() {
        question.push_str("Proxy-Authorization: ");
        question.push_str(&value);
        question.push_str("\r\n");
    }
}

/// Sends the question, and reads the head of the answer: byte for byte, since what follows it is for somebody else.
/// An answer that trickles is given up after `limit` and one silence.
fn ask(line: &mut (impl Read + Write + ?Sized), question: &str, limit: Duration) -> io::Result<Head> {
    line.write_all(question.as_bytes())?;
    line.flush()?;
    let (began, mut head, mut byte) = (Instant::now(), Vec::new(), [0_u8]);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LARGEST_HEAD {
            return Err(io::Error::other("the answer is no HTTP"));
        }
        if began.elapsed() > limit {
            return Err(io::Error::other(format!("no whole answer within {} s", limit.as_secs_f64())));
        }
        match line.read(&mut byte) {
            Ok(0) if head.is_empty() => return Err(io::Error::other("the connection is closed without an answer")),
            Ok(0) => return Err(io::Error::other("the answer ends in its middle, or is no HTTP")),
            Ok(_) => head.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_silence(error.kind()) => {
                return Err(io::Error::other(format!("nothing came for {} s", limit.as_secs_f64())));
            }
            Err(error) => return Err(error),
        }
    }
    parse(&head).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

fn parse(head: &[u8]) -> Option<Head> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let first = lines.next()?;
    let mut words = first.strip_prefix("HTTP/1.")?.split(' ');
    let status = words.nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    Some(Head { status, headers: lines.filter_map(header).collect() })
}
