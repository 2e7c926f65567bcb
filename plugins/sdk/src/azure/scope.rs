//! A part of Azure that is looked at, and who looks.

use std::sync::Arc;

use secrecy::SecretString;
use vaultferry_proto::{Problem, Reason};

use super::arm;
use super::identity::Identity;
use super::token::{FixedToken, TokenSource};

/// Longest name of a resource group.
const LONGEST_GROUP: usize = 90;

/// A subscription or one of its resource groups. Its names are plain: they become parts of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    subscription_id: String,
    resource_group: Option<String>,
    caller: Caller,
}

/// Whose token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Caller {
    /// What this process is when nobody says it.
    Usual,
    Identity(Identity),
    /// A token that somebody else got, in this variable of the environment.
    Variable(String),
}

fn invalid(message: String) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

impl Scope {
    /// Reads a subscription's id (a UUID), a resource group's name (empty: the whole subscription) and an identity: empty, `managed`,
    /// `managed:CLIENT-ID`, `workload` or `env:VARIABLE`. What is wrong is [`Reason::InvalidRequest`].
    pub fn parse(subscription_id: &str, resource_group: &str, identity: &str) -> Result<Self, Problem> {
        if !is_uuid(subscription_id) {
            let message = "a subscription is named by its id, such as 6b2f4c1e-0000-4000-8000-0123456789ab".to_owned();
            return Err(invalid(message).with_fix("az account list --output table shows the ids of subscriptions."));
        }
        let is_known = |character: char| character.is_alphanumeric() || "-_.()".contains(character);
        let length = resource_group.chars().count();
        if length > LONGEST_GROUP || !resource_group.chars().all(is_known) || resource_group.ends_with('.') {
            let message = format!("{resource_group:?} is not the name of a resource group");
            return Err(invalid(message).with_fix("az group list --output table shows the names of resource groups."));
        }
        let caller = match (identity, identity.strip_prefix("env:")) {
            ("", _) => Caller::Usual,
            (_, Some(name)) if is_variable(name) => Caller::Variable(name.to_owned()),
            // Not repeated: somebody may have put a token there.
            (text, _) => Caller::Identity(text.parse().map_err(|_| {
                let message = "an identity for Azure is managed, managed:CLIENT-ID, workload or env:VARIABLE";
                invalid(message.to_owned())
            })?),
        };
        Ok(Self {
            subscription_id: subscription_id.to_ascii_lowercase(),
            resource_group: (length > 0).then(|| resource_group.to_owned()),
            caller,
        })
    }

    /// `/subscriptions/…`, with the resource group where there is one.
    pub fn path(&self) -> String {
        let subscription = format!("/subscriptions/{}", self.subscription_id);
        match &self.resource_group {
            Some(group) => format!("{subscription}/resourceGroups/{group}"),
            None => subscription,
        }
    }

    /// Resource Manager, asked by this scope's identity for what the role Reader allows. Sends nothing.
    pub fn reader(&self) -> Result<arm::Client, Problem> {
        arm::Client::new(arm::Config::from_environment("Reader", self.path())?, self.tokens()?)
    }

    fn tokens(&self) -> Result<Arc<dyn TokenSource>, Problem> {
        match &self.caller {
            Caller::Usual => Ok(Identity::of_environment()?.source()?.into()),
            Caller::Identity(identity) => Ok(identity.source()?.into()),
            Caller::Variable(name) => {
                let token = std::env::var(name).ok().filter(|token| !token.trim().is_empty()).ok_or_else(|| {
                    let message = format!("the agent's environment has no variable {name} with a token");
                    invalid(message).with_fix("Set the variable for the agent, and start it again.")
                })?;
                Ok(Arc::new(FixedToken(SecretString::from(token.trim()))))
            }
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8_usize, 4, 4, 4, 12])
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_variable(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6B2F4C1E-0000-4000-8000-0123456789ab";

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        let whole = Scope::parse(ID, "", "").unwrap();
        assert_eq!(whole.path(), "/subscriptions/6b2f4c1e-0000-4000-8000-0123456789ab");
        let group = Scope::parse(ID, "rg-(db)_1.x", "managed").unwrap();
        assert!(group.path().ends_with("/resourceGroups/rg-(db)_1.x"), "{group:?}");
        for (id, group) in [
            ("", ""),
            ("shop", ""),
            ("6b2f4c1e-0000-4000-8000-0123456789a", ""),
            ("6b2f4c1e/0000-4000-8000-0123456789ab", ""),
            (ID, "a/b"),
            (ID, ".."),
            (ID, "a?x=y"),
            (ID, "a b"),
            (ID, &"a".repeat(91)),
        ] {
            let problem = Scope::parse(id, group, "").unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidRequest, "{id} {group}");
        }
    }

    #[test]
    fn an_identity_is_read_and_a_token_in_its_place_is_not_repeated() {
        assert_eq!(Scope::parse(ID, "", "env:ARM_TOKEN").unwrap().caller, Caller::Variable("ARM_TOKEN".to_owned()));
        assert_eq!(Scope::parse(ID, "", "workload").unwrap().caller, Caller::Identity(Identity::Workload));
        for text in ["eyJ0hunter2", "env:", "env:a b", "managed:"] {
            let problem = Scope::parse(ID, "", text).unwrap_err();
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
    }
}
