//! The rule of a network security group that lets a machine reach its vault (V39-V44): what `deploy/network/security-group.json` says, filled in.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use vaultferry_proto::{Problem, Reason};

/// The rules as data; `deploy/network/README.md` says what they are for.
const RULES: &str = include_str!("../../../../deploy/network/security-group.json");
/// In the place of a region that nobody has named.
const ANY_REGION: &str = "REGION";

/// What the machine's disks are, which decides the port (V43).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskKind {
    /// Managed disks.
    Managed,
    /// Disks in an encrypted storage account; also what a machine that is not Azure's needs: HTTPS.
    #[default]
    UnmanagedEncrypted,
    /// Disks in a storage account without encryption.
    UnmanagedUnencrypted,
}

impl DiskKind {
    /// As the data and the command line name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::UnmanagedEncrypted => "unmanaged-encrypted",
            Self::UnmanagedUnencrypted => "unmanaged-unencrypted",
        }
    }
}

/// What is known of the machine and of its network.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The region of vault and machine.
    pub region: Option<String>,
    /// The machine's disks.
    pub disks: DiskKind,
    /// The priority of the deny rule that has to be outdone; none: not known.
    pub deny_priority: Option<u16>,
}

/// A rule, ready to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// `Outbound`
    pub direction: String,
    /// `Allow`
    pub access: String,
    /// `Tcp`
    pub protocol: String,
    /// A service tag, or an address with its length.
    pub source: String,
    /// `*`
    pub source_ports: String,
    /// A service tag.
    pub destination: String,
    /// A port, or a range.
    pub destination_ports: String,
    /// Lower goes first.
    pub priority: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    vault: RuleData<BTreeMap<String, String>>,
    proxy: RuleData<String>,
    priorities: Priorities,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleData<P> {
    name: String,
    direction: String,
    access: String,
    protocol: String,
    source: String,
    source_ports: String,
    destination: String,
    destination_ports: P,
    priority: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Priorities {
    first: u16,
    last: u16,
}

impl<P> RuleData<P> {
    fn filled(self, destination: String, ports: impl FnOnce(P) -> String, priority: u16) -> Rule {
        Rule {
            name: self.name,
            direction: self.direction,
            access: self.access,
            protocol: self.protocol,
            source: self.source,
            source_ports: self.source_ports,
            destination,
            destination_ports: ports(self.destination_ports),
            priority,
        }
    }
}

fn data() -> Result<Data, Problem> {
    serde_json::from_str(RULES).map_err(|error| Problem::new(Reason::Internal, format!("security-group.json: {error}")))
}

/// The rule that lets the machines of a virtual network reach the vault's storage (V42).
///
/// Errors: [`Reason::InvalidRequest`] when no priority goes before the deny rule's.
pub fn to_vault(place: &Place) -> Result<Rule, Problem> {
    let Data { vault, priorities, .. } = data()?;
    let priority = priority(vault.priority, &priorities, place.deny_priority)?;
    let region = place.region.as_deref().unwrap_or(ANY_REGION);
    let destination = vault.destination.replace("{region}", region);
    let kind = place.disks.as_str();
    Ok(vault.filled(destination, |ports| ports.get(kind).cloned().unwrap_or_default(), priority))
}

/// The rule that lets a proxy out (V45, V48); `proxy` is its address with its length, and the example's when none is known.
///
/// Errors: as of [`to_vault`].
pub fn of_proxy(place: &Place, proxy: Option<&str>) -> Result<Rule, Problem> {
    let Data { proxy: rule, priorities, .. } = data()?;
    let priority = priority(rule.priority, &priorities, place.deny_priority)?;
    let destination = rule.destination.clone();
    let mut rule = rule.filled(destination, |ports| ports, priority);
    if let Some(proxy) = proxy {
        rule.source = proxy.to_owned();
    }
    Ok(rule)
}

/// The usual priority when it goes before the deny rule's; else the one right before that (V44).
fn priority(usual: u16, priorities: &Priorities, deny: Option<u16>) -> Result<u16, Problem> {
    let Some(deny) = deny else { return Ok(usual) };
    let before = deny.min(priorities.last + 1).saturating_sub(1);
    if before < priorities.first {
        let message =
            format!("no rule can go before a deny rule of priority {deny}: {} is the first", priorities.first);
        let fix = "Give the deny rule a higher number, for example 1000, and try again.";
        return Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix));
    }
    Ok(usual.min(before))
}

impl fmt::Display for Rule {
    /// The command that makes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "az network nsg rule create --resource-group GROUP --nsg-name NSG --name {} --priority {} --direction {} --access {} \
             --protocol {} --source-address-prefixes {} --source-port-ranges '{}' --destination-address-prefixes {} \
             --destination-port-ranges {}",
            self.name,
            self.priority,
            self.direction,
            self.access,
            self.protocol,
            self.source,
            self.source_ports,
            self.destination,
            self.destination_ports
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_as_azure_backup_prescribes_it() {
        for (disks, port) in
            [(DiskKind::Managed, "8443"), (DiskKind::default(), "443"), (DiskKind::UnmanagedUnencrypted, "80")]
        {
            let place = Place { region: Some("koreacentral".to_owned()), disks, deny_priority: Some(1000) };
            let rule = to_vault(&place).expect("a rule");
            let expected = Rule {
                name: "AllowVaultferryVault".to_owned(),
                direction: "Outbound".to_owned(),
                access: "Allow".to_owned(),
                protocol: "Tcp".to_owned(),
                source: "VirtualNetwork".to_owned(),
                source_ports: "*".to_owned(),
                destination: "Storage.koreacentral".to_owned(),
                destination_ports: port.to_owned(),
                priority: 200,
            };
            assert_eq!(rule, expected);
        }
        let command = to_vault(&Place::default()).expect("a rule").to_string();
        assert!(
            command.contains("--destination-address-prefixes Storage.REGION --destination-port-ranges 443"),
            "{command}"
        );
        let proxy = of_proxy(&Place::default(), None).expect("a rule");
        let facts = [&proxy.source, &proxy.source_ports, &proxy.destination, &proxy.destination_ports, &proxy.protocol];
        assert_eq!(facts, ["10.0.0.5/32", "*", "Internet", "80-443", "Tcp"]);
        assert_eq!(proxy.priority, 200);
    }

    #[test]
    fn a_rule_goes_before_every_deny_rule() {
        for deny in 101..=4096 {
            let place = Place { deny_priority: Some(deny), ..Place::default() };
            let priority = to_vault(&place).expect("a rule").priority;
            assert!((100..deny).contains(&priority), "{priority} for {deny}");
        }
        for (deny, expected) in [(65500, 200), (201, 200), (200, 199), (101, 100)] {
            let place = Place { deny_priority: Some(deny), ..Place::default() };
            assert_eq!(to_vault(&place).expect("a rule").priority, expected);
        }
        let place = Place { deny_priority: Some(100), ..Place::default() };
        assert_eq!(to_vault(&place).expect_err("none goes before").reason, Reason::InvalidRequest);
        assert_eq!(of_proxy(&place, None).expect_err("none goes before").reason, Reason::InvalidRequest);
    }
}
