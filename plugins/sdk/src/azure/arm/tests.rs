use secrecy::SecretString;

use super::*;
use crate::azure::token::FixedToken;

#[test]
fn an_endpoint_is_a_host_and_nothing_more() {
    for good in [PUBLIC, "https://management.chinacloudapi.cn", "https://h:8443/", "http://127.0.0.1:8080/"] {
        assert!(endpoint(good).is_ok(), "{good}");
    }
    for bad in ["", "h", "http://h/", "https://u:p@h/", "https://h/arm", "https://h/?x=y", "https://h/#x"] {
        let problem = endpoint(bad).expect_err(bad);
        assert_eq!(problem.reason, Reason::InvalidConfiguration, "{bad}");
    }
}

#[test]
fn only_what_leads_to_the_same_host_is_followed() {
    let config = Config {
        endpoint: endpoint(PUBLIC).expect("an address"),
        deadline: Duration::from_secs(1),
        role: "Reader",
        role_scope: "/subscriptions/s".to_owned(),
    };
    let client = Client::new(config, Arc::new(FixedToken(SecretString::from("token")))).expect("a client");
    for good in [
        "https://management.azure.com/subscriptions?x=1",
        "https://MANAGEMENT.azure.com:443/subscriptions?$skiptoken=a",
    ] {
        assert!(client.same_host(good, "nextLink").is_ok(), "{good}");
    }
    for bad in [
        "https://management.azure.com.evil.example/subscriptions",
        "https://evil.example/management.azure.com/subscriptions",
        "https://management.azure.com@evil.example/subscriptions",
        "https://somebody:pw@management.azure.com/subscriptions",
        "https://management.azure.com:8443/subscriptions",
        "http://management.azure.com/subscriptions",
        "http://169.254.169.254/metadata/identity/oauth2/token",
        "//evil.example/subscriptions",
        "/subscriptions?page=2",
        "file:///etc/passwd",
    ] {
        let problem = client.same_host(bad, "nextLink").expect_err(bad);
        assert!(problem.reason == Reason::AzureRefused && problem.message.contains("same host"), "{bad}: {problem}");
    }
}

#[tokio::test]
async fn a_token_that_no_header_can_hold_is_refused_at_once() {
    let endpoint = endpoint("http://127.0.0.1:1/").expect("an address");
    let deadline = Duration::from_secs(60);
    let config = Config { endpoint, deadline, role: "Reader", role_scope: "/subscriptions/s".to_owned() };
    let token = FixedToken(SecretString::from("eyJ0hunter2\n(expires in an hour)"));
    let client = Client::new(config, Arc::new(token)).expect("a client");
    let cancel = CancellationToken::new();
    let asked = client.get("/subscriptions/s", "1", &cancel);
    let problem = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("at once").expect_err("refused");
    assert_eq!(problem.reason, Reason::AzureRefused, "{problem}");
    assert!(problem.message.contains("token alone") && !format!("{problem:?}").contains("hunter2"), "{problem:?}");
}
