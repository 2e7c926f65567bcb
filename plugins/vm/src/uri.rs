//! Where a machine's disks are: `disk:///path/to/image-or-device?disk=/path/to/another&name=machine`.
//!
//! - The disks are `disk0`, `disk1`, … in the order in which they stand. Each is an absolute path, once.
//! - Everything may be percent-encoded. `..` is refused: what stands there is what is read.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::percent::{decode, encode};

/// Disks of one machine at most.
const DISKS_MAX: usize = 64;

/// A parsed source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// At least one, in order.
    pub disks: Vec<PathBuf>,
    /// What the machine is called; `None`: as its first disk.
    pub name: Option<String>,
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidSource, message)
        .with_fix("Write it as disk:///path/to/image-or-device, with &disk=/path for each disk more.")
}

impl FromStr for Uri {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let rest = text.strip_prefix("disk://").ok_or_else(|| invalid("the URI does not begin with disk://"))?;
        let (first, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self { disks: vec![path(first)?], name: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("disk", value)) => {
                    let disk = path(value)?;
                    if uri.disks.contains(&disk) {
                        return Err(invalid(format!("the URI names {} twice", disk.display())));
                    }
                    uri.disks.push(disk);
                }
                Some(("name", value)) if uri.name.is_none() => {
                    let name = decode(value).filter(|name| !name.is_empty() && !name.chars().any(char::is_control));
                    uri.name = Some(name.ok_or_else(|| invalid("the URI's name is empty or cannot be read"))?);
                }
                _ => return Err(invalid(format!("the URI's parameter {pair:?} is none, or is there twice"))),
            }
        }
        if uri.disks.len() > DISKS_MAX {
            return Err(invalid(format!("the URI names {} disks; {DISKS_MAX} are possible", uri.disks.len())));
        }
        Ok(uri)
    }
}

fn path(text: &str) -> Result<PathBuf, Problem> {
    let decoded = decode(text).filter(|text| !text.contains('\0'));
    let path = PathBuf::from(decoded.ok_or_else(|| invalid("a path of the URI cannot be read"))?);
    let is_plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(is_plain) {
        return Err(invalid(format!("{:?} is no absolute path without ..", path.display().to_string())));
    }
    // Without doubled slashes, dots, and one at the end.
    Ok(path.components().collect())
}

impl Uri {
    /// The name of disk `number`.
    pub fn disk_name(number: usize) -> String {
        format!("disk{number}")
    }

    /// What the instance is called when nobody says.
    pub fn suggested_name(&self) -> String {
        let first =
            self.disks.first().and_then(|disk| disk.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
        self.name.clone().or(first).unwrap_or_else(|| "machine".to_owned())
    }
}

/// One identity for every spelling: the disks' own paths, which the caller has resolved.
pub fn identity(disks: &[PathBuf]) -> String {
    let mut paths: Vec<String> = disks.iter().map(|disk| of_path(&disk.to_string_lossy())).collect();
    paths.sort();
    let mut paths = paths.into_iter();
    let mut identity = paths.next().unwrap_or_default();
    for path in paths {
        identity.push_str("&disk=");
        identity.push_str(path.trim_start_matches("disk://"));
    }
    identity
}

/// The URI of one disk, or of a folder with images.
pub fn of_path(path: &str) -> String {
    let parts: Vec<String> = Path::new(path)
        .components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(encode(&part.to_string_lossy())),
            _ => None,
        })
        .collect();
    format!("disk:///{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_a_name() {
        let uri: Uri = "disk:///dev/vdb?disk=/dev/vdc&name=my%20machine&disk=/srv/a%26b.raw".parse().unwrap();
        assert_eq!(uri.disks, [Path::new("/dev/vdb"), Path::new("/dev/vdc"), Path::new("/srv/a&b.raw")]);
        assert_eq!(uri.suggested_name(), "my machine");
        let uri: Uri = "disk:///srv//images/./web.img".parse().unwrap();
        assert_eq!((uri.disks[0].as_path(), uri.suggested_name().as_str()), (Path::new("/srv/images/web.img"), "web"));
        for wrong in [
            "disk://host/dev/vdb",
            "disk:/dev/vdb",
            "postgres://u@h/d",
            "disk:///a/../b",
            "disk:///a?disk=b",
            "disk:///a?disk=/a",
            "disk:///a?disk=/b&disk=/b/",
            "disk:///a?colour=blue",
            "disk:///a?name=",
            "disk:///a?name=x&name=y",
            "disk:///a%00b",
            "disk:///a%zz",
        ] {
            assert_eq!(wrong.parse::<Uri>().unwrap_err().reason, Reason::InvalidSource, "{wrong}");
        }
    }

    #[test]
    fn an_identity_is_the_same_in_every_order_and_is_a_uri() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(identity(&paths(&["/dev/vdc", "/dev/vdb"])), "disk:///dev/vdb&disk=/dev/vdc");
        assert_eq!(identity(&paths(&["/dev/vdb", "/dev/vdc"])), "disk:///dev/vdb&disk=/dev/vdc");
        assert_eq!(of_path("/srv/my images/a?.raw"), "disk:///srv/my%20images/a%3F.raw");
        let back: Uri = of_path("/srv/my images/a?.raw").parse().unwrap();
        assert_eq!(back.disks, [Path::new("/srv/my images/a?.raw")]);
    }
}
