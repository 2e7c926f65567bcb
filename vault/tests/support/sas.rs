//! Shared access signatures of one container, signed with the account's key.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// The version whose string to sign is written below.
const VERSION: &str = "2020-12-06";

/// The query of a signature that gives `rights` (`racwdl`, in Azure's order) on a container until `expiry`.
pub fn container(account: &str, key: &str, container: &str, rights: &str, expiry: jiff::Timestamp) -> String {
    let expiry = expiry.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let resource = format!("/blob/{account}/{container}");
    // rights, start, expiry, resource, identifier, ip, protocol, version, kind, snapshot, encryption scope, five response headers
    let fields = [rights, "", &expiry, &resource, "", "", "", VERSION, "c", "", "", "", "", "", "", ""];
    let key = BASE64_STANDARD.decode(key).expect("the key is base64");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    let signature = BASE64_STANDARD.encode(aws_lc_rs::hmac::sign(&key, fields.join("\n").as_bytes()));
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs([("sv", VERSION), ("sr", "c"), ("sp", rights), ("se", &expiry), ("sig", &signature)]);
    query.finish()
}
