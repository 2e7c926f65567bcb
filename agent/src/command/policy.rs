//! `vaultferry policy`

use std::io::Read as _;
use std::path::Path;

use vaultferry_proto::control::v1::{
    CreatePolicyRequest, DeletePolicyRequest, ExportPolicyRequest, GetPolicyRequest, ListPoliciesRequest,
    SimulatePolicyRequest, UpdatePolicyRequest, UpdatePolicyResponse,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, confirm};
use crate::args::{Policy, PolicyCreate, PolicyShow, PolicyUpdate, Product, Simulation};
use crate::client::Client;
use crate::output::{policy as policy_text, text};

/// The contract's limit for a document.
const LONGEST_DOCUMENT: Limit = Limit { bytes: 64 << 10, text: "64 KiB", what: "TOML" };
/// And for a policy of Azure.
const LONGEST_AZURE_POLICY: Limit = Limit { bytes: 1 << 20, text: "1 MiB", what: "JSON" };

/// How much of a file is read.
#[derive(Debug, Clone, Copy)]
struct Limit {
    bytes: u64,
    text: &'static str,
    what: &'static str,
}

pub(super) async fn run(context: &Context, command: Policy) -> Result<Outcome, Problem> {
    match command {
        Policy::Create(command) => create(context, command).await,
        Policy::List => list(context).await,
        Policy::Show(command) => show(context, command).await,
        Policy::Update(command) => update(context, command).await,
        Policy::Delete { policy } => delete(context, policy).await,
    }
}

async fn create(context: &Context, command: PolicyCreate) -> Result<Outcome, Problem> {
    let PolicyCreate { file, from_azure, name, simulation } = command;
    let document = file.map(|file| read(&file, LONGEST_DOCUMENT)).transpose()?.unwrap_or_default();
    if let Some(request) = simulation_request(simulation) {
        return simulate(context, SimulatePolicyRequest { document, ..request }).await;
    }
    let azure_policy = from_azure.map(|file| read(&file, LONGEST_AZURE_POLICY)).transpose()?.unwrap_or_default();
    let client = context.client().await?;
    let request = CreatePolicyRequest { document, azure_policy, name: name.unwrap_or_default() };
    let answer = client.policies().create_policy(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policy(response.policy.as_ref()))?;
    if context.output.is_text() {
        context.output.notes(&answer.notes);
    }
    Ok(Outcome::Done)
}

async fn list(context: &Context) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().list_policies(ListPoliciesRequest {}).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policies(&response.policies))?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, command: PolicyShow) -> Result<Outcome, Problem> {
    let PolicyShow { policy, simulation, product } = command;
    if let Some(request) = simulation_request(simulation) {
        return simulate(context, SimulatePolicyRequest { policy, ..request }).await;
    }
    if let Some(Product::Azure) = product {
        return export(context, policy).await;
    }
    let client = context.client().await?;
    let answer = client.policies().get_policy(GetPolicyRequest { policy }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::policy(response.policy.as_ref()))?;
    Ok(Outcome::Done)
}

/// `None` when nothing is to be simulated. The request still lacks the policy or the document.
fn simulation_request(simulation: Simulation) -> Option<SimulatePolicyRequest> {
    Some(SimulatePolicyRequest {
        span: simulation.simulate?,
        from: simulation.from.unwrap_or_default(),
        instance: simulation.instance.unwrap_or_default(),
        ..SimulatePolicyRequest::default()
    })
}

async fn simulate(context: &Context, request: SimulatePolicyRequest) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().simulate_policy(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| policy_text::simulation(response.simulation.as_ref()))?;
    Ok(Outcome::Done)
}

/// Standard output has the other product's JSON in both formats, so that it can be given to that product as it is; notes go beside it.
async fn export(context: &Context, policy: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().export_policy(ExportPolicyRequest { policy }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    let value: serde_json::Value = serde_json::from_str(&answer.azure_policy)
        .map_err(|error| Problem::new(Reason::Internal, format!("the agent's answer is not JSON: {error}")))?;
    context.output.value(&value, || format!("{value:#}"))?;
    context.output.notes(&answer.notes);
    Ok(Outcome::Done)
}

/// The same change again is no error, so a broken connection is no reason to doubt.
async fn update(context: &Context, command: PolicyUpdate) -> Result<Outcome, Problem> {
    let request = UpdatePolicyRequest {
        document: read(&command.file, LONGEST_DOCUMENT)?,
        preview: command.preview,
        confirm_shorter: command.yes,
        seen_version: 0,
    };
    let mut client = context.client().await?;
    let answer = match send(&mut client, &request).await {
        Err(problem) if problem.reason == Reason::RetentionShortened && confirm::can_ask() => {
            let preview = send(&mut client, &UpdatePolicyRequest { preview: true, ..request.clone() }).await?;
            context.output.aside(&policy_text::change(&preview));
            if !confirm::ask("Change the policy all the same?")? {
                return Err(Problem::new(Reason::Cancelled, "nothing was changed"));
            }
            // The answer is for the version that was shown, and for no other.
            let seen_version = preview.previous.map_or(0, |previous| previous.version);
            send(&mut client, &UpdatePolicyRequest { confirm_shorter: true, seen_version, ..request }).await
        }
        answer => answer,
    }?;
    context.output.message(&answer, policy_text::change)?;
    Ok(Outcome::Done)
}

async fn send(client: &mut Client, request: &UpdatePolicyRequest) -> Result<UpdatePolicyResponse, Problem> {
    let call = |client: Client| {
        let request = request.clone();
        async move { client.policies().update_policy(request).await }
    };
    client.idempotent(call).await
}

async fn delete(context: &Context, policy: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.policies().delete_policy(DeletePolicyRequest { policy }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| {
        let deleted = response.policy.as_ref();
        deleted.map(|policy| format!("The policy {} is deleted.", policy.name)).unwrap_or_default()
    })?;
    Ok(Outcome::Done)
}

/// A file's text; never more than the limit is read.
fn read(file: &Path, limit: Limit) -> Result<String, Problem> {
    let refuse = |why: String| {
        Problem::new(Reason::InvalidPolicy, format!("the policy file {} {why}", file.display()))
            .with_fix(format!("Name a {} file of at most {}.", limit.what, limit.text))
    };
    let mut text = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin().lock().take(limit.bytes + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit.bytes + 1).read_to_string(&mut text))
    };
    match result {
        Err(error) => Err(refuse(format!("cannot be read: {error}"))),
        Ok(length) if length as u64 > limit.bytes => Err(refuse(format!("is longer than {}", limit.text))),
        Ok(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        for limit in [LONGEST_DOCUMENT, LONGEST_AZURE_POLICY] {
            std::fs::write(&file, "a".repeat(limit.bytes as usize)).unwrap();
            assert_eq!(read(&file, limit).unwrap().len() as u64, limit.bytes);
            std::fs::write(&file, "a".repeat(limit.bytes as usize + 1)).unwrap();
            assert_eq!(read(&file, limit).unwrap_err().reason, Reason::InvalidPolicy);
        }
        assert!(read(&dir.path().join("none"), LONGEST_DOCUMENT).unwrap_err().message.contains("none"));
    }
}
