//! `vaultferry policy`

use std::io::Read as _;
use std::path::Path;

use vaultferry_proto::control::v1::{CreatePolicyRequest, GetPolicyRequest, ListPoliciesRequest};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome};
use crate::args::Policy;
use crate::output::text;

/// The contract's limit.
const LONGEST_DOCUMENT: u64 = 64 << 10;

pub(super) async fn run(context: &Context, command: Policy) -> Result<Outcome, Problem> {
    match command {
        Policy::Create { file } => create(context, &file).await,
        Policy::List => list(context).await,
        Policy::Show { policy } => show(context, policy).await,
    }
}

async fn create(context: &Context, file: &Path) -> Result<Outcome, Problem> {
    let document = read(file)?;
    let client = context.client().await?;
    let answer = client.policies().create_policy(CreatePolicyRequest { document }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policy(response.policy.as_ref()))?;
    Ok(Outcome::Done)
}

async fn list(context: &Context) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().list_policies(ListPoliciesRequest {}).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policies(&response.policies))?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, policy: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().get_policy(GetPolicyRequest { policy }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policy(response.policy.as_ref()))?;
    Ok(Outcome::Done)
}

/// The document; never more than the limit is read.
fn read(file: &Path) -> Result<String, Problem> {
    let refuse = |why: String| {
        Problem::new(Reason::InvalidPolicy, format!("the policy file {} {why}", file.display()))
            .with_fix("Name a TOML file of at most 64 KiB with -f.")
    };
    let mut document = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin().lock().take(LONGEST_DOCUMENT + 1).read_to_string(&mut document)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST_DOCUMENT + 1).read_to_string(&mut document))
    };
    match result {
        Err(error) => Err(refuse(format!("cannot be read: {error}"))),
        Ok(length) if length as u64 > LONGEST_DOCUMENT => Err(refuse("is longer than 64 KiB".to_owned())),
        Ok(_) => Ok(document),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, "a".repeat(LONGEST_DOCUMENT as usize)).unwrap();
        assert_eq!(read(&file).unwrap().len() as u64, LONGEST_DOCUMENT);
        std::fs::write(&file, "a".repeat(LONGEST_DOCUMENT as usize + 1)).unwrap();
        assert_eq!(read(&file).unwrap_err().reason, Reason::InvalidPolicy);
        assert!(read(&dir.path().join("none")).unwrap_err().message.contains("none"));
    }
}
