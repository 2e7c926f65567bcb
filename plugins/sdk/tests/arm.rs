//! The client of Azure Resource Manager against a server that keeps the published rules, and breaks them when it is told to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_plugin_sdk::azure::arm::{Client, Config};
use vaultferry_plugin_sdk::azure::token::FixedToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_tests::fake_arm::{CORRELATION_ID, FakeArm, Fault, SUBSCRIPTION, TOKEN};

const API: &str = "2022-12-01";

fn client_with(arm: &FakeArm, token: &str, deadline: Duration) -> Client {
    let endpoint = Url::parse(&arm.endpoint()).expect("an address");
    let role_scope = format!("/subscriptions/{SUBSCRIPTION}");
    let config = Config { endpoint, deadline, role: "Reader", role_scope };
    Client::new(config, Arc::new(FixedToken(SecretString::from(token)))).expect("a client")
}

fn client(arm: &FakeArm) -> Client {
    client_with(arm, TOKEN, Duration::from_secs(20))
}

fn servers() -> String {
    format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.DBforPostgreSQL/flexibleServers")
}

fn thing(name: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/things/{name}")
}

async fn names(client: &Client) -> Result<Vec<String>, Problem> {
    let items: Vec<Value> = client.list(&servers(), API, &CancellationToken::new()).await?;
    Ok(items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect())
}

fn with_five() -> FakeArm {
    let arm = FakeArm::start();
    for number in 0..5 {
        arm.add_server(&format!("s{number}"), "westeurope", "h", &json!({}));
    }
    arm
}

#[tokio::test]
async fn a_list_has_the_items_of_all_pages_whatever_passes_between_them() {
    let arm = with_five();
    arm.fail(&[Fault::Busy(0), Fault::Broken, Fault::Lost, Fault::Failed]);
    assert_eq!(names(&client(&arm)).await.expect("a list"), ["s0", "s1", "s2", "s3", "s4"]);
    assert_eq!(arm.calls().len(), 4 + 3);
}

#[tokio::test]
async fn nobody_is_asked_again_before_it_wants_to_be() {
    let arm = with_five();
    arm.fail(&[Fault::Busy(2)]);
    let begin = Instant::now();
    names(&client(&arm)).await.expect("a list");
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());

    // A wait beyond the deadline is not begun: who asks is told when to come back.
    arm.fail(&[Fault::Busy(3600)]);
    let begin = Instant::now();
    let problem = names(&client(&arm)).await.expect_err("busy");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(problem.reason, Reason::AzureUnavailable);
    for part in ["429", "SubscriptionRequestsThrottled", "3600 s", CORRELATION_ID] {
        assert!(problem.message.contains(part), "{part} is not in {problem}");
    }
}

#[tokio::test]
async fn the_deadline_is_of_the_whole_call() {
    let arm = with_five();
    arm.fail(&[Fault::Broken; 100]);
    let begin = Instant::now();
    let problem = names(&client_with(&arm, TOKEN, Duration::from_secs(2))).await.expect_err("never");
    assert_eq!(problem.reason, Reason::AzureUnavailable);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    assert!(problem.message.contains("times") && problem.message.contains(CORRELATION_ID), "{problem}");
}

#[tokio::test]
async fn refusals_have_their_reason_their_fix_and_the_correlation_id() {
    let arm = with_five();
    arm.fail(&[Fault::Forbidden]);
    let problem = names(&client(&arm)).await.expect_err("forbidden");
    assert_eq!(problem.reason, Reason::UserErrorMSIMissingPermissions);
    assert!(problem.message.contains("AuthorizationFailed") && problem.message.contains(CORRELATION_ID), "{problem}");
    let command = format!("--role \"Reader\" --scope /subscriptions/{SUBSCRIPTION}");
    assert!(problem.fix.contains("az role assignment create") && problem.fix.contains(&command), "{}", problem.fix);

    let stranger = client_with(&arm, "hunter2", Duration::from_secs(20));
    let problem = names(&stranger).await.expect_err("not its token");
    assert_eq!(problem.reason, Reason::UserErrorMSIMissingPermissions);
    assert!(!format!("{problem:?} {stranger:?}").contains("hunter2"), "{problem:?}");

    let elsewhere = "/subscriptions/00000000-0000-4000-8000-000000000000/providers/Microsoft.Storage/storageAccounts";
    let asked: Result<Vec<Value>, Problem> = client(&arm).list(elsewhere, API, &CancellationToken::new()).await;
    let problem = asked.expect_err("no such subscription");
    assert_eq!(problem.reason, Reason::AzureNotFound);
    assert!(problem.message.contains("SubscriptionNotFound") && problem.message.contains(CORRELATION_ID), "{problem}");
}

#[tokio::test]
async fn a_token_goes_nowhere_else_and_answers_have_bounds() {
    let arm = with_five();
    for (fault, word) in
        [(Fault::LeadsAway, "same host"), (Fault::Moved, "302"), (Fault::Garbage, "no JSON"), (Fault::Endless, "8 MiB")]
    {
        arm.fail(&[fault]);
        let problem = names(&client(&arm)).await.expect_err(word);
        assert_eq!(problem.reason, Reason::AzureRefused, "{problem}");
        assert!(problem.message.contains(word), "{word} is not in {problem}");
    }
    assert_eq!(arm.calls().len(), 4, "each of them was asked once: {:?}", arm.calls());
}

/// A service that leads in a circle is asked for each page once, and not until the deadline.
#[tokio::test]
async fn a_list_that_leads_back_to_itself_is_refused() {
    let arm = with_five();
    arm.fail(&[Fault::Circles; 100]);
    let problem = names(&client(&arm)).await.expect_err("it never ends");
    assert_eq!(problem.reason, Reason::AzureRefused, "{problem}");
    assert!(problem.message.contains("read already"), "{problem}");
    assert_eq!(arm.calls().len(), 2, "{:?}", arm.calls());
}

/// Its reader gets one page after the other, and may have enough.
#[tokio::test]
async fn a_long_list_is_read_page_by_page() {
    let arm = with_five();
    let (client, cancel) = (client(&arm), CancellationToken::new());
    let mut pages = Vec::new();
    let keep = |page: Vec<Value>| {
        pages.push(page.len());
        Ok(())
    };
    client.list_pages(&servers(), API, &[("$maxpagesize", "3")], keep, &cancel).await.expect("all of them");
    assert_eq!(pages, [2, 2, 1], "the service's own pages are smaller");
    arm.pages_of(1000);
    let mut pages = Vec::new();
    let enough = |page: Vec<Value>| {
        pages.push(page.len());
        Err(Problem::new(Reason::InvalidRequest, "enough"))
    };
    let asked = client.list_pages(&servers(), API, &[("$maxpagesize", "3")], enough, &cancel).await;
    assert_eq!(asked.expect_err("it had enough").message, "enough");
    assert_eq!(pages, [3]);
}

#[tokio::test]
async fn operations_are_followed_to_their_end() {
    let (arm, cancel) = (FakeArm::start(), CancellationToken::new());
    let (client, limit) = (client(&arm), Duration::from_secs(30));
    let made = client.put(&thing("one"), API, &json!({"size": 3}), &cancel).await.expect("accepted");
    assert_eq!(made.finish(&client, limit, &cancel).await.expect("made")["status"], "Succeeded");
    let polls = arm.calls().iter().filter(|call| call.starts_with("GET /operations/")).count();
    assert_eq!(polls, 3);
    let started = client.post(&format!("{}/start", thing("one")), API, None, &cancel).await.expect("accepted");
    assert_eq!(started.finish(&client, limit, &cancel).await.expect("started")["done"], true);
    // The second deletion finds nothing, which is what was wanted.
    for _ in 0..2 {
        let deleted = client.delete(&thing("one"), API, &cancel).await.expect("accepted");
        deleted.finish(&client, limit, &cancel).await.expect("deleted");
    }
    let elsewhere = "/subscriptions/00000000-0000-4000-8000-000000000000/things/one";
    let problem = client.delete(elsewhere, API, &cancel).await.expect_err("no such subscription");
    assert_eq!(problem.reason, Reason::AzureNotFound);
    let bad = client.put(&thing("bad"), API, &json!({}), &cancel).await.expect("accepted");
    let problem = bad.finish(&client, limit, &cancel).await.expect_err("it fails");
    assert_eq!(problem.reason, Reason::AzureRefused);
    for part in ["Failed: Broken the thing broke", CORRELATION_ID] {
        assert!(problem.message.contains(part), "{part} is not in {problem}");
    }
}

#[tokio::test]
async fn an_action_whose_answer_was_lost_is_not_asked_for_again() {
    let (arm, cancel) = (FakeArm::start(), CancellationToken::new());
    let client = client(&arm);
    for fault in [Fault::Lost, Fault::Failed] {
        let before = arm.calls().len();
        arm.fail(&[fault]);
        let problem = client.post(&thing("one"), API, None, &cancel).await.expect_err("not known");
        assert_eq!(problem.reason, Reason::AzureUnavailable);
        assert!(problem.message.contains("not known"), "{problem}");
        assert_eq!(arm.calls().len(), before + 1);
    }
    // What was put off, was not begun.
    arm.fail(&[Fault::Busy(0), Fault::Broken]);
    client.post(&thing("one"), API, None, &cancel).await.expect("accepted");
    // What can be repeated, is.
    arm.fail(&[Fault::Lost, Fault::Failed]);
    client.put(&thing("one"), API, &json!({}), &cancel).await.expect("accepted");
}

#[tokio::test]
async fn a_cancelled_call_ends_in_its_wait() {
    let (arm, cancel) = (with_five(), CancellationToken::new());
    arm.fail(&[Fault::Busy(10)]);
    let client = client(&arm);
    let asking = tokio::spawn({
        let cancel = cancel.clone();
        async move { client.get(&servers(), API, &cancel).await }
    });
    while arm.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), asking).await.expect("at once").expect("no panic");
    assert_eq!(ended.expect_err("cancelled").reason, Reason::Cancelled);
}
