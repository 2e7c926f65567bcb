//! What is reached straight though there is a proxy: this machine, and what `no_proxy` lists.

use std::net::{IpAddr, Ipv4Addr};

use url::Host;

/// This machine itself.
pub fn is_this_machine(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

/// A list of `no_proxy`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bypass {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Everything,
    /// The name itself and all below it; without a leading dot, in lower case.
    Name(String),
    /// Addresses that have these leading bits.
    Network(IpAddr, u8),
}

impl Bypass {
    /// Reads the entries; the error is the one that is none.
    pub fn new(texts: &[String]) -> Result<Self, String> {
        let entries: Result<_, String> =
            texts.iter().map(|text| Entry::parse(text).ok_or_else(|| text.clone())).collect();
        Ok(Self { entries: entries? })
    }

    /// Adds a system's entries (`a,b,c`); those that cannot be read are left out, as every program does.
    pub fn extend(&mut self, list: &str) {
        self.entries.extend(list.split(',').filter_map(Entry::parse));
    }

    /// True when the host is reached straight.
    pub fn matches(&self, host: &Host<&str>) -> bool {
        is_this_machine(host) || self.entries.iter().any(|entry| entry.matches(host))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "*" {
            return Some(Self::Everything);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Network(address, bits(address)));
        }
        if let Some((address, length)) = text.split_once('/') {
            let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
            return (length <= bits(address)).then_some(Self::Network(address, length));
        }
        let name = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (!name.is_empty() && name.bytes().all(is_name)).then(|| Self::Name(name.to_ascii_lowercase()))
    }

    fn matches(&self, host: &Host<&str>) -> bool {
        match (self, host) {
            (Self::Everything, _) => true,
            (Self::Name(name), Host::Domain(host)) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(name.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            (Self::Network(network, length), Host::Ipv4(address)) => {
                same_bits(*network, IpAddr::from(*address), *length)
            }
            (Self::Network(network, length), Host::Ipv6(address)) => {
                same_bits(*network, IpAddr::from(*address), *length)
            }
            (Self::Name(_), Host::Ipv4(_) | Host::Ipv6(_)) | (Self::Network(..), Host::Domain(_)) => false,
        }
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Both of one family, and equal in the first `length` bits.
fn same_bits(network: IpAddr, address: IpAddr, length: u8) -> bool {
    let shifted = |value: u128, bits: u8| if length == 0 { 0 } else { value >> (bits - length) };
    let wide = |address: Ipv4Addr| u128::from(u32::from(address));
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => shifted(wide(network), 32) == shifted(wide(address), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            shifted(u128::from(network), 128) == shifted(u128::from(address), 128)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    #[test]
    fn names_networks_and_this_machine() {
        let list: Vec<String> =
            ["example.com", ".corp", "10.0.0.0/8", "192.168.1.7", "fd00::/8"].map(str::to_owned).into();
        let bypass = Bypass::new(&list).expect("all can be read");
        let matches = |host: &str| {
            let url = Url::parse(&format!("http://{host}/")).expect("a url");
            bypass.matches(&url.host().expect("a host"))
        };
        for host in [
            "example.com",
            "A.Example.com",
            "b.corp",
            "corp",
            "10.200.3.4",
            "192.168.1.7",
            "[fd12::1]",
            "localhost",
            "127.0.0.9",
            "[::1]",
        ] {
            assert!(matches(host), "{host}");
        }
        for host in [
            "notexample.com",
            "example.com.evil",
            "11.0.0.1",
            "192.168.1.8",
            "[fe80::1]",
            "account.blob.core.windows.net",
        ] {
            assert!(!matches(host), "{host}");
        }
        for wrong in ["10.0.0.0/33", "fd00::/129", "a b", "", "http://x"] {
            assert_eq!(Bypass::new(&[wrong.to_owned()]), Err(wrong.to_owned()));
        }
        let all = Bypass::new(&["*".to_owned()]).expect("everything");
        assert!(all.matches(&Host::Domain("x")));
        let mut none = Bypass::new(&["0.0.0.0/0".to_owned()]).expect("a network");
        assert!(none.matches(&Host::Ipv4([8, 8, 8, 8].into())) && !none.matches(&Host::Domain("x")));
        none.extend(" x , http://wrong,, ");
        assert!(none.matches(&Host::Domain("x")));
    }
}
