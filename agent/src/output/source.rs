//! What servers have, which sources are ready, and servers that are sources, as text for people.

use vaultferry_proto::control::v1::{
    self as wire, CreateBackupInstancesResponse, DiscoveredContainer, DiscoveredServer, DiscoveredSource, Server,
    ServerDatabase, SourceReadiness, discovered_source, server_database, source_readiness,
};
use vaultferry_proto::{Problem, Reason};

use super::table::{fields, printable, table};
use super::units::{size, time};

/// What stands in the place of a URI that is not repeated.
const NOT_REPEATED: &str = "(not shown: it is no valid URI, and may hold a password)";

/// A problem that the agent tells inside of an answer.
pub fn problem(told: &wire::Problem) -> Problem {
    from_parts(&told.reason, &told.message, &told.fix)
}

/// The same for a note.
pub fn problem_of(note: &source_readiness::Note) -> Problem {
    from_parts(&note.reason, &note.message, &note.fix)
}

/// A newer agent knows reasons that we do not.
fn from_parts(reason: &str, message: &str, fix: &str) -> Problem {
    match reason.parse::<Reason>() {
        Ok(reason) => Problem::new(reason, message).with_fix(fix),
        Err(()) => Problem::new(Reason::Internal, format!("{reason}: {message}")).with_fix(fix),
    }
}

/// The URI, or what stands for one that is not repeated.
pub fn named(uri: &str) -> &str {
    if uri.is_empty() { NOT_REPEATED } else { uri }
}

/// What stands for extensions that an answer does not have, with no reason: an older agent does not tell one.
const NO_EXTENSIONS: &str = "none, or not known (see the agent's log)";

/// Why a server has not told what it was asked for: it could not be asked, or none of its databases told its extensions.
pub fn untold(server: &DiscoveredServer) -> Option<Problem> {
    if let Some(told) = &server.problem {
        return Some(problem(told));
    }
    let mut problems = server.sources.iter().filter_map(|source| source.extensions_problem.as_ref());
    let first = problems.next()?;
    if server.sources.iter().any(|source| !source.extensions.is_empty()) {
        return None;
    }
    let (name, count) = (printable(&server.name), 1 + problems.count());
    let first = problem(first);
    let message = match count {
        1 => format!("{name}: the extensions of its database are not known: {}", first.message),
        count => {
            format!("{name}: the extensions of none of its {count} databases are known; the first: {}", first.message)
        }
    };
    Some(Problem { message, ..first })
}

/// A table for each server. One that could not be asked is an error, which is told elsewhere.
///
/// The answer does not say whether extensions were asked for: they were when any database told some, or why not. Then each has its line
/// that could have been asked, so that one whose login failed is not just missing.
pub fn discovered(servers: &[DiscoveredServer]) -> String {
    if servers.is_empty() {
        return "There are no servers.".to_owned();
    }
    let was_asked = |source: &DiscoveredSource| !source.extensions.is_empty() || source.extensions_problem.is_some();
    let with_extensions = servers.iter().flat_map(|server| &server.sources).any(was_asked);
    let asked = servers.iter().filter(|server| server.problem.is_none());
    let one = |server: &DiscoveredServer| {
        let head = head(server);
        if !server.left_out.is_empty() {
            return format!("{head}\nleft out: {}", printable(&server.left_out));
        }
        let rows: Vec<[String; 6]> = server.sources.iter().map(source).collect();
        let headings = ["NAME", "SIZE", "VERSION", "ENCODING", "STATE", "SOURCE"];
        let nothing = match server.uri.starts_with("disk:") {
            true => "There is no image or device.",
            false => "It has no databases but templates.",
        };
        let sources = table(headings, &rows, nothing);
        let asked = server.sources.iter().filter(|source| source.allows_connections && source.problem.is_none());
        let extensions: Vec<[String; 2]> = asked.map(extensions).collect();
        match with_extensions && !extensions.is_empty() {
            false => format!("{head}\n{sources}"),
            true => format!("{head}\n{sources}\n\n{}", table(["NAME", "EXTENSIONS"], &extensions, "")),
        }
    };
    asked.map(one).collect::<Vec<_>>().join("\n\n")
}

/// "db:5432: PostgreSQL 15.14, primary", and what Azure says of it: "Ready, westeurope"
fn head(server: &DiscoveredServer) -> String {
    if server.uri.starts_with("disk:") {
        return printable(&server.name).into_owned();
    }
    let kind = if server.replica { "replica" } else { "primary" };
    let mut head = format!("{}: PostgreSQL {}, {kind}", printable(&server.name), printable(&server.version));
    for word in [&server.state, &server.region] {
        if !word.is_empty() {
            head.push_str(&format!(", {}", printable(word)));
        }
    }
    head
}

/// Where files can be restored to.
pub fn containers(containers: &[DiscoveredContainer]) -> String {
    let rows: Vec<[String; 2]> =
        containers.iter().map(|container| [container.uri.clone(), container.region.clone()]).collect();
    table(["CONTAINER", "REGION"], &rows, "There are no containers.")
}

fn source(source: &DiscoveredSource) -> [String; 6] {
    use discovered_source::State;
    let state = match source.state() {
        State::Unspecified => String::new(),
        State::NotProtected => "not protected".to_owned(),
        State::Protected => held(&source.instance, &source.protection_state_text),
        State::CannotBeProtected => {
            let problem = source.problem.clone().unwrap_or_default();
            format!("cannot be protected: {}. {}", problem.message, problem.fix)
        }
    };
    let size = if source.size_bytes == 0 { "-".to_owned() } else { size(source.size_bytes) };
    let (version, encoding) = (source.version.clone(), source.encoding.clone());
    [source.name.clone(), size, version, encoding, state, source.uri.clone()]
}

fn extensions(source: &DiscoveredSource) -> [String; 2] {
    let extensions = match (source.extensions.as_slice(), &source.extensions_problem) {
        (_, Some(problem)) => format!("not known: {}: {}", problem.reason, problem.message),
        ([], None) => NO_EXTENSIONS.to_owned(),
        (some, None) => some.join(", "),
    };
    [source.name.clone(), extensions]
}

/// "protected as shop", "Stopped - (data retained), as shop"
fn held(instance: &str, text: &str) -> String {
    match text {
        "Protected" => format!("protected as {instance}"),
        text if text.starts_with("Protected") => format!("protected as {instance} (pending initial backup)"),
        text => format!("{text}, as {instance}"),
    }
}

/// Why a source is neither protected nor ready; `None` when it is. `or_taken`: also why it cannot be protected once more.
pub fn lacking(result: &SourceReadiness, or_taken: bool) -> Option<&source_readiness::Note> {
    match result.state() {
        source_readiness::State::NotReady => result.obstacles.first(),
        source_readiness::State::AlreadyProtected => result.obstacles.first().filter(|_| or_taken),
        source_readiness::State::Ready | source_readiness::State::Unspecified => None,
    }
}

/// Every source in a line, then what each lacks, and how to mend it.
pub fn readiness(response: &CreateBackupInstancesResponse) -> String {
    use source_readiness::State;
    let state = |result: &SourceReadiness| match result.state() {
        State::Unspecified => String::new(),
        State::Ready if result.instance.is_empty() => "ready".to_owned(),
        State::Ready => format!("protected as {}", result.instance),
        State::AlreadyProtected => format!("already protected as {}", result.instance),
        State::NotReady => {
            let reasons: Vec<&str> = result.obstacles.iter().map(|note| note.reason.as_str()).collect();
            format!("not ready: {}", reasons.join(", "))
        }
    };
    let rows: Vec<[String; 2]> =
        response.results.iter().map(|result| [named(&result.source_uri).to_owned(), state(result)]).collect();
    let mut text = table(["SOURCE", "READINESS"], &rows, "");
    for result in &response.results {
        let kinds = result.obstacles.iter().map(|note| ("lacks", note));
        let kinds = kinds.chain(result.warnings.iter().map(|note| ("warning", note)));
        for (kind, note) in kinds.filter(|_| !matches!(result.state(), State::AlreadyProtected)) {
            let head = format!("\n\n{}\n  {kind}: {}: {}", named(&result.source_uri), note.reason, note.message);
            text.push_str(&printable(&head));
            if !note.fix.is_empty() {
                text.push_str(&printable(&format!("\n  fix: {}", note.fix)));
            }
        }
    }
    text
}

/// The remark that a policy came into being.
pub fn policy_created(policy: &str) -> String {
    format!(
        "note: made the default policy {}: a backup every day, kept for 30 days (vaultferry policy show {})",
        printable(policy),
        printable(policy)
    )
}

/// Each server with its databases.
pub fn servers(servers: &[Server]) -> String {
    if servers.is_empty() {
        return "No server is a source yet.".to_owned();
    }
    servers.iter().map(server).collect::<Vec<_>>().join("\n\n")
}

fn server(server: &Server) -> String {
    let problem = server.problem.as_ref().map(|problem| format!("{}: {}", problem.reason, problem.message));
    let head = fields(&[
        ("server", server.name.clone()),
        ("id", server.id.clone()),
        ("source", server.uri.clone()),
        ("policy", server.policy.clone()),
        ("region", server.region.clone()),
        ("include", if server.include.is_empty() { "all".to_owned() } else { server.include.join(", ") }),
        ("exclude", server.exclude.join(", ")),
        ("scanned", server.scan_time.as_ref().map_or("not yet".to_owned(), |at| time(Some(at)))),
        ("problem", problem.unwrap_or_default()),
    ]);
    let rows: Vec<[String; 2]> =
        server.databases.iter().map(|database| [database.name.clone(), database_state(database)]).collect();
    format!("{head}\n{}", table(["DATABASE", "STATE"], &rows, "No databases are known."))
}

fn database_state(database: &ServerDatabase) -> String {
    use server_database::State;
    match database.state() {
        State::Unspecified => String::new(),
        State::Protected => held(&database.instance, &database.protection_state_text),
        State::NotReady => {
            let problem = database.problem.clone().unwrap_or_default();
            format!("not ready: {}: {}. {}", problem.reason, problem.message, problem.fix)
        }
        State::LeftOut => "left out by the patterns".to_owned(),
        State::Missing => {
            format!("missing at the server; {}", held(&database.instance, &database.protection_state_text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_told_with_what_it_lacks() {
        let note = source_readiness::Note { reason: "R".into(), message: "no right".into(), fix: "grant it".into() };
        let result = |uri: &str, state: source_readiness::State, instance: &str| SourceReadiness {
            source_uri: uri.into(),
            state: state.into(),
            instance: instance.into(),
            ..SourceReadiness::default()
        };
        let results = vec![
            result("postgres://u@h/a", source_readiness::State::Ready, ""),
            SourceReadiness { obstacles: vec![note], ..result("", source_readiness::State::NotReady, "") },
            SourceReadiness {
                obstacles: vec![source_readiness::Note::default()],
                ..result("postgres://u@h/c", source_readiness::State::AlreadyProtected, "shop")
            },
        ];
        let response = CreateBackupInstancesResponse { results, ..CreateBackupInstancesResponse::default() };
        let text = readiness(&response);
        for part in [
            "postgres://u@h/a  ",
            "  ready\n",
            "not ready: R",
            "already protected as shop",
            "no right",
            "fix: grant it",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        for (or_taken, count) in [(false, 1), (true, 2)] {
            assert_eq!(response.results.iter().filter_map(|result| lacking(result, or_taken)).count(), count);
        }
    }

    #[test]
    fn a_server_is_told_with_what_azure_says_and_why_it_was_not_asked() {
        let server = DiscoveredServer {
            name: "shop".into(),
            version: "15.7".into(),
            replica: true,
            state: "Stopped".into(),
            region: "westeurope".into(),
            left_out: "it is Stopped".into(),
            ..DiscoveredServer::default()
        };
        let text = discovered(std::slice::from_ref(&server));
        assert_eq!(text, "shop: PostgreSQL 15.7, replica, Stopped, westeurope\nleft out: it is Stopped");
        let mut asked = DiscoveredServer { left_out: String::new(), ..server };
        let extensions = vec!["plpgsql 1.0".to_owned(), "postgis 3.3.2".to_owned()];
        let source = |name: &str| DiscoveredSource {
            name: name.into(),
            allows_connections: true,
            ..DiscoveredSource::default()
        };
        asked.sources.push(source("silent"));
        assert!(!discovered(std::slice::from_ref(&asked)).contains("EXTENSIONS"), "they were not asked for");
        asked.sources.push(DiscoveredSource { extensions, ..source("a") });
        asked.sources.push(DiscoveredSource { allows_connections: false, ..source("closed") });
        let text = discovered(&[asked]);
        let (_, told) = text.split_once("EXTENSIONS").expect("a table of extensions");
        assert!(told.contains("plpgsql 1.0, postgis 3.3.2"), "{text}");
        // One that did not tell is not just missing; one that nobody may log in to was not asked.
        assert!(told.contains("silent  none, or not known") && !told.contains("closed"), "{text}");
    }

    #[test]
    fn a_server_of_which_no_extension_could_be_read_is_a_failure() {
        let refused = |name: &str| DiscoveredSource {
            name: name.into(),
            allows_connections: true,
            extensions_problem: Some(wire::Problem {
                reason: "UserErrorDBUserAuthFailed".into(),
                message: format!("{name} lets nobody in"),
                fix: "the fix".into(),
            }),
            ..DiscoveredSource::default()
        };
        let sources = vec![refused("a"), refused("b")];
        let mut server = DiscoveredServer { name: "db:5432".into(), sources, ..DiscoveredServer::default() };
        let text = discovered(std::slice::from_ref(&server));
        assert!(text.contains("not known: UserErrorDBUserAuthFailed: b lets nobody in"), "{text}");
        let problem = untold(&server).expect("a failure");
        assert_eq!((problem.reason, problem.fix.as_str()), (Reason::UserErrorDBUserAuthFailed, "the fix"));
        assert!(problem.message.contains("db:5432") && problem.message.contains("none of its 2"), "{problem}");
        // One that told is enough: the table says the rest.
        let told = DiscoveredSource { extensions: vec!["plpgsql 1.0".into()], ..DiscoveredSource::default() };
        server.sources.push(told);
        assert_eq!(untold(&server), None);
        server.sources.clear();
        assert_eq!(untold(&server), None, "nothing was asked for");
        let unreached = wire::Problem { reason: "TlsFailed".into(), ..wire::Problem::default() };
        let unreached = DiscoveredServer { problem: Some(unreached), ..server };
        assert_eq!(untold(&unreached).map(|problem| problem.reason), Some(Reason::TlsFailed));
    }

    #[test]
    fn nothing_found_is_said() {
        assert_eq!(discovered(&[]), "There are no servers.");
    }

    #[test]
    fn an_instance_that_does_not_protect_is_not_called_protected() {
        assert_eq!(held("shop", "Protected - (pending initial backup)"), "protected as shop (pending initial backup)");
        assert_eq!(held("shop", "Stopped - (data retained)"), "Stopped - (data retained), as shop");
    }
}
