use super::*;

const TARGET: &str = "https://account.blob.core.windows.net/vault";

fn url(text: &str) -> Url {
    Url::parse(text).expect("a url")
}

fn settings(proxy: &str) -> Settings {
    Settings { proxy: Some(proxy.to_owned()), ..Settings::default() }
}

/// The proxy's address and its origin.
fn chosen(network: &Network, target: &str) -> Option<(String, String)> {
    network.proxy_for(&url(target)).map(|proxy| (proxy.url().to_string(), proxy.origin().to_owned()))
}

#[test]
fn the_configuration_wins_over_the_system() {
    let system = Surroundings::new(
        &[("HTTPS_PROXY", "http://env:1")],
        "http_proxy=http://file:2",
        "HttpProxy.Host=a\nHttpProxy.Port=3",
    );
    let network = Network::new(&settings("http://configured:3128"), &system).expect("right");
    let expected = ("http://configured:3128/".to_owned(), "[network] proxy".to_owned());
    assert_eq!(chosen(&network, TARGET), Some(expected.clone()));
    assert_eq!(chosen(&network, "http://elsewhere/"), Some(expected));
    assert_eq!(chosen(&network, "http://127.0.0.1:10000/x"), None, "never to this machine");
    let straight = Network::new(&settings(STRAIGHT), &system).expect("right");
    assert_eq!(chosen(&straight, TARGET), None);
}

#[test]
fn the_systems_settings_are_asked_in_their_order() {
    let agent = "# HttpProxy.Host=x\nHttpProxy.Host=10.0.0.5\nHttpProxy.Port=8080\n";
    let of = |variables: &[(&str, &str)], file: &str, agent: &str| {
        let network = Network::new(&Settings::default(), &Surroundings::new(variables, file, agent)).expect("right");
        [chosen(&network, TARGET), chosen(&network, "http://elsewhere/")].map(|proxy| proxy.map(|(url, _)| url))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(of(&[], "", ""), [None, None]);
    assert_eq!(of(&[], "", "HttpProxy.Host=None\nHttpProxy.Port=None"), [None, None]);
    assert_eq!(of(&[], "", agent), [some("http://10.0.0.5:8080/"), some("http://10.0.0.5:8080/")]);
    // V46: http_proxy of /etc/environment is for everything.
    let file = "PATH=\"/bin\"\nhttp_proxy=\"http://file:3128\"\n";
    assert_eq!(of(&[], file, agent), [some("http://file:3128/"), some("http://file:3128/")]);
    // In a process's own environment it is for http, as every program reads it.
    let plain = [("http_proxy", "http://env:1")];
    assert_eq!(of(&plain, "", ""), [None, some("http://env:1/")]);
    let all = [("HTTPS_PROXY", "env:2"), ("ALL_PROXY", "http://env:3")];
    assert_eq!(of(&all, file, agent), [some("http://env:2/"), some("http://env:3/")]);
    let bypassed = [("HTTPS_PROXY", "env:2"), ("NO_PROXY", "example.com, .windows.net")];
    assert_eq!(of(&bypassed, "", ""), [None, None]);
}

#[test]
fn what_cannot_be_is_said_without_its_secrets() {
    let none = Surroundings::default();
    for wrong in ["https://proxy:1", "socks5://proxy:1", "http://", "http://proxy:1/path", "http://u:geheim@proxy:1"] {
        let fault = Network::new(&settings(wrong), &none).expect_err(wrong).to_string();
        assert!(!fault.contains("geheim") && fault.contains("network"), "{fault}");
    }
    let system = Surroundings::new(&[("ALL_PROXY", "socks5://u:geheim@proxy:1")], "", "");
    let fault = Network::new(&Settings::default(), &system).expect_err("no http proxy").to_string();
    assert!(!fault.contains("geheim") && fault.contains("ALL_PROXY") && fault.contains("proxy = \"none\""), "{fault}");
    let lonely = Settings { credential: Some(Credential::Env("X".to_owned())), ..Settings::default() };
    assert!(Network::new(&lonely, &none).is_err());
}

#[test]
fn logins_come_from_where_they_are_named_and_are_shown_nowhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("login");
    std::fs::write(&file, "kim:geh:eim\n").expect("written");
    let surroundings = Surroundings::new(&[("PROXY_LOGIN", "kim:geh:eim")], "", "");
    for credential in [Credential::Env("PROXY_LOGIN".to_owned()), Credential::File(file.clone())] {
        let settings = Settings { credential: Some(credential), ..settings("http://proxy:1") };
        let network = Network::new(&settings, &surroundings).expect("right");
        let proxy = network.proxy_for(&url(TARGET)).expect("the proxy");
        // printf kim:geh:eim | base64
        assert_eq!(proxy.authorization().as_deref().map(String::as_str), Some("Basic a2ltOmdlaDplaW0="));
        assert!(!format!("{network:?} {settings:?}").contains("eim"));
        assert!(!serde_json::to_string(&settings).expect("json").contains("eim"));
    }
    let in_url = Surroundings::new(&[("https_proxy", "http://kim:geh%3Aeim@proxy:1")], "", "");
    let network = Network::new(&Settings::default(), &in_url).expect("right");
    let proxy = network.proxy_for(&url(TARGET)).expect("the proxy");
    assert_eq!(proxy.url().as_str(), "http://proxy:1/");
    assert_eq!(proxy.authorization().as_deref().map(String::as_str), Some("Basic a2ltOmdlaDplaW0="));
    std::fs::write(&file, "no colon").expect("written");
    for credential in [Credential::Env("MISSING".to_owned()), Credential::File(file)] {
        let settings = Settings { credential: Some(credential), ..settings("http://proxy:1") };
        let fault = Network::new(&settings, &surroundings).expect_err("no login").to_string();
        assert!(!fault.contains("no colon"), "{fault}");
    }
}

#[test]
fn authorities_are_certificates() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ca.pem");
    let settings = Settings { ca_file: Some(path.clone()), ..Settings::default() };
    let fault = || Network::new(&settings, &Surroundings::default()).expect_err("no authority").to_string();
    assert!(fault().contains("cannot be read"), "{}", fault());
    std::fs::write(&path, "nothing").expect("written");
    assert!(fault().contains("no certificate"), "{}", fault());
}

#[test]
fn settings_travel_to_plugins() {
    let all = Settings {
        credential: Some(Credential::File("/etc/login".into())),
        no_proxy: vec!["a".to_owned()],
        ca_file: Some("/etc/ca.pem".into()),
        ..settings("http://proxy:1")
    };
    for settings in [Settings::default(), settings(STRAIGHT), all] {
        let json = serde_json::to_string(&settings).expect("json");
        assert_eq!(serde_json::from_str::<Settings>(&json).expect("the same"), settings);
    }
}

#[test]
fn addresses_have_their_ports() {
    for (text, expected) in
        [(TARGET, "account.blob.core.windows.net:443"), ("http://[::1]/", "[::1]:80"), ("http://a:10000/x", "a:10000")]
    {
        assert_eq!(authority(&url(text)).as_deref(), Some(expected));
    }
}
