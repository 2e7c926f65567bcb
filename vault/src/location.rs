//! Where a vault is, and how its stores are opened.
//!
//! ```text
//! folder /srv/vault           records: /srv/vault           instance: /srv/vault/instances/<id>
//! azure://account/name        records: container name       instance: container name-<id>
//! ```
//! Each instance has its own container because a shared access signature cannot be limited to a prefix. That is why a vault's name is
//! short: a container's name has at most 63 characters, and an instance's id takes 33 of them with its hyphen.
//!
//! Every store that is opened here is wrapped in [`retry::Retrying`].
//!
//! Credentials: [`RoleAccess`] holds one for each part of the program ([`Role`]), so that only maintenance can delete. From an account key
//! a signature for one instance's container, of limited time, is made for each use: the key itself stays with the agent.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::store::azure::sas::{self, Role};
use crate::store::azure::{self, Azure, Credential};
use crate::store::folder::Folder;
use crate::store::{Error, Redundancy, Shared, retry};

/// Where instances lie below a folder vault.
const INSTANCES_DIR: &str = "instances";
/// Where an instance's restic repository lies in its store.
const REPOSITORY: &str = "repo";
/// Hexadecimal digits of an instance's id.
const INSTANCE_ID_DIGITS: usize = 32;

/// The place of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder, by its absolute path.
    Folder(PathBuf),
    /// Containers of an Azure storage account, whose names begin with `name`.
    Azure {
        /// The storage account.
        account: String,
        /// 3 to 30 lower-case letters, digits and single hyphens.
        name: String,
    },
}

/// The text is no place of a vault. The message says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a vault's location: {detail}")]
pub struct InvalidLocation {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub detail: &'static str,
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        let invalid = |detail| InvalidLocation { text: shown(text), detail };
        let (account, name) = match parse(text, "it is neither an absolute path nor azure://account/name")? {
            Parsed::Folder(path) => return Ok(Self::Folder(path)),
            Parsed::Azure { account, rest } => (account, rest),
        };
        if !is_vault_name(name) {
            return Err(invalid("the name after the account is 3 to 30 lower-case letters, digits and single hyphens"));
        }
        Ok(Self::Azure { account: account.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Azure { account, name } => write!(f, "azure://{account}/{name}"),
        }
    }
}

/// What a location or a target is, before its container is looked at.
pub(crate) enum Parsed<'a> {
    /// An absolute path.
    Folder(PathBuf),
    /// `rest` is what stands after the account, without slashes around it.
    Azure { account: &'a str, rest: &'a str },
}

/// Tells folders and Azure apart; `neither` is the fault of a text that is none of them.
pub(crate) fn parse<'a>(text: &'a str, neither: &'static str) -> Result<Parsed<'a>, InvalidLocation> {
    let invalid = |detail| InvalidLocation { text: shown(text), detail };
    let Some(rest) = text.strip_prefix("azure://") else {
        let path = Path::new(text);
        return if path.is_absolute() {
            Ok(Parsed::Folder(path.components().collect()))
        } else {
            Err(invalid(neither))
        };
    };
    let rest = rest.trim_end_matches('/');
    let (account, rest) = rest.split_once('/').unwrap_or((rest, ""));
    if !is_account(account) {
        return Err(invalid("a storage account's name is 3 to 24 lower-case letters and digits"));
    }
    Ok(Parsed::Azure { account, rest })
}

/// What is shown of a text that was refused: somebody may have pasted a whole URL with its signature.
pub(crate) fn shown(text: &str) -> String {
    text.split('?').next().unwrap_or_default().to_owned()
}

fn is_account(account: &str) -> bool {
    (3..=24).contains(&account.len()) && account.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Azure's rule for containers: lower-case letters, digits, single hyphens, none at the ends.
pub(crate) fn is_container_name(name: &str, max_len: usize) -> bool {
    (3..=max_len).contains(&name.len())
        && name
            .split('-')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

fn is_vault_name(name: &str) -> bool {
    is_container_name(name, 63 - 1 - INSTANCE_ID_DIGITS)
}

/// A vault's place, and what it takes to get in.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where the vault is.
    pub location: Location,
    /// Where the storage account's blobs are, when it is not Azure's public cloud. Not used by folders.
    pub endpoint: Option<Url>,
    /// Needed by Azure; not used by folders.
    pub credential: Option<azure::Credential>,
    /// How long one operation of a store is tried; see [`retry::Config`].
    pub store_deadline: Duration,
}

impl Access {
    /// The store of the vault's own records. Sends nothing and makes nothing: a missing store is told by its first use
    /// ([`Error::NoStore`]).
    pub fn open_root(&self) -> Result<Shared, Error> {
        #[cfg(feature = "simulate")]
        if let Some(place) = self.simulated() {
            return Ok(self.retrying(place.store(None)));
        }
        let store: Shared = match &self.location {
            Location::Folder(path) => Arc::new(Folder::new(path.clone())),
            Location::Azure { account, name } => Arc::new(self.azure(account, name)?),
        };
        Ok(self.retrying(store))
    }

    /// The store of one backup instance, whose id is 32 lower-case hexadecimal digits. Otherwise as [`Access::open_root`].
    pub fn open_instance(&self, instance_id: &str) -> Result<Shared, Error> {
        self.check_instance_id(instance_id)?;
        #[cfg(feature = "simulate")]
        if let Some(place) = self.simulated() {
            return Ok(self.retrying(place.store(Some(instance_id))));
        }
        let store: Shared = match &self.location {
            Location::Folder(path) => Arc::new(Folder::new(instance_dir(path, instance_id))),
            Location::Azure { account, name } => Arc::new(self.azure(account, &instance_container(name, instance_id))?),
        };
        Ok(self.retrying(store))
    }

    /// Makes the folder or container of the vault's own records; one that exists is left as it is.
    pub async fn create_root(&self) -> Result<(), Error> {
        #[cfg(feature = "simulate")]
        if self.simulated().is_some() {
            return Ok(());
        }
        match &self.location {
            Location::Folder(path) => Folder::new(path.clone()).create().await,
            Location::Azure { account, name } => self.create_container(&self.azure(account, name)?).await,
        }
    }

    /// Makes the folder or container of an instance; one that exists is left as it is. A folder vault that is not there is not made
    /// by it ([`Error::NoStore`]): a disk that is not mounted must not become a vault.
    pub async fn create_instance(&self, instance_id: &str) -> Result<(), Error> {
        self.check_instance_id(instance_id)?;
        #[cfg(feature = "simulate")]
        if self.simulated().is_some() {
            return Ok(());
        }
        match &self.location {
            Location::Folder(path) => {
                if !tokio::fs::try_exists(path).await.unwrap_or(true) {
                    return Err(Error::NoStore { store: self.location.to_string() });
                }
                Folder::new(instance_dir(path, instance_id)).create().await
            }
            Location::Azure { account, name } => {
                self.create_container(&self.azure(account, &instance_container(name, instance_id))?).await
            }
        }
    }

    /// The ids of all instances, ascending, also of those whose making was interrupted. On Azure the credential must be allowed to list the
    /// account's containers.
    pub async fn instance_ids(&self) -> Result<Vec<String>, Error> {
        #[cfg(feature = "simulate")]
        if let Some(place) = self.simulated() {
            return Ok(place.instance_ids());
        }
        let names = match &self.location {
            Location::Folder(path) => Folder::new(path.join(INSTANCES_DIR)).subfolders().await?,
            Location::Azure { account, name } => {
                let azure = self.azure(account, name)?;
                let prefix = format!("{name}-");
                let (retry, store) = (self.retry(), self.location.to_string());
                let names =
                    retry::retrying(&retry, &store, "list containers", || azure.list_containers(&prefix)).await?;
                names.into_iter().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect()
            }
        };
        // Containers of a vault whose name begins with this one's are not of this vault, nor is anything else that somebody laid there.
        let mut ids: Vec<String> = names.into_iter().filter(|name| self.check_instance_id(name).is_ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes what killed processes left unfinished in a folder vault: of the instance, or of the vault's own records. Only files older
    /// than `older_than` go: choose an age that no running put reaches. In Azure nothing unfinished is kept. Returns how many went.
    pub async fn sweep_temporary(&self, instance_id: Option<&str>, older_than: Duration) -> Result<u64, Error> {
        let Location::Folder(path) = &self.location else { return Ok(0) };
        #[cfg(feature = "simulate")]
        if self.simulated().is_some() {
            return Ok(0);
        }
        let folder = match instance_id {
            Some(instance_id) => {
                self.check_instance_id(instance_id)?;
                instance_dir(path, instance_id)
            }
            None => path.clone(),
        };
        Folder::new(folder).sweep_temporary(older_than).await
    }

    /// What restic calls the instance's repository (`restic -r …`). Azure's account and credential are not part of it: restic takes them
    /// from its environment.
    pub fn restic_repository(&self, instance_id: &str) -> String {
        match &self.location {
            Location::Folder(path) => instance_dir(path, instance_id).join(REPOSITORY).display().to_string(),
            Location::Azure { name, .. } => format!("azure:{}:/{REPOSITORY}", instance_container(name, instance_id)),
        }
    }

    /// What the storage below is set to, asked of the storage account; `None` for a folder, which cannot tell.
    /// [`Error::AccessDenied`] when the credential may not ask.
    pub async fn redundancy(&self) -> Result<Option<Redundancy>, Error> {
        let Location::Azure { account, name } = &self.location else { return Ok(None) };
        let (azure, store) = (self.azure(account, name)?, self.location.to_string());
        let asked = retry::retrying(&self.retry(), &store, "ask for the redundancy", || azure.redundancy()).await?;
        Ok(Some(asked))
    }

    /// The same place with what `role` needs in one instance's store and no more, until `expiry`: an account key becomes a signature for
    /// that container. A signature cannot be narrowed and is handed on; a folder has nothing to narrow.
    pub fn narrowed(&self, instance_id: &str, role: Role, expiry: jiff::Timestamp) -> Result<Self, Error> {
        self.check_instance_id(instance_id)?;
        let (Location::Azure { account, name }, Some(Credential::AccountKey(key))) = (&self.location, &self.credential)
        else {
            return Ok(self.clone());
        };
        let container = instance_container(name, instance_id);
        let credential = sas::container(account, key, &container, role.letters(), expiry)?;
        Ok(Self { credential: Some(credential), ..self.clone() })
    }

    /// What stands for the folder in a simulation.
    #[cfg(feature = "simulate")]
    fn simulated(&self) -> Option<Arc<dyn crate::simulate::Place>> {
        let Location::Folder(path) = &self.location else { return None };
        crate::simulate::place(path)
    }

    async fn create_container(&self, azure: &Azure) -> Result<(), Error> {
        let store = self.location.to_string();
        retry::retrying(&self.retry(), &store, "make a container", || azure.create_container()).await
    }

    fn azure(&self, account: &str, container: &str) -> Result<Azure, Error> {
        let Some(credential) = self.credential.clone() else {
            let detail = "no credential is configured".to_owned();
            return Err(Error::AccessDenied { store: self.location.to_string(), detail });
        };
        let endpoint = self.endpoint.clone();
        Azure::new(&azure::Config {
            account: account.to_owned(),
            container: container.to_owned(),
            endpoint,
            credential,
        })
    }

    fn retry(&self) -> retry::Config {
        retry::Config { deadline: self.store_deadline }
    }

    fn retrying(&self, store: Shared) -> Shared {
        Arc::new(retry::Retrying::new(store, self.retry()))
    }

    fn check_instance_id(&self, instance_id: &str) -> Result<(), Error> {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if instance_id.len() == INSTANCE_ID_DIGITS && instance_id.bytes().all(hex) {
            return Ok(());
        }
        let detail = format!("{instance_id:?} is not the id of a backup instance");
        Err(Error::Rejected { store: self.location.to_string(), detail })
    }
}

/// A vault's place with a credential for each part of the program. One that was not given falls back to the vault's own.
#[derive(Debug, Clone)]
pub struct RoleAccess {
    access: Access,
    plugin: Option<Credential>,
    commit: Option<Credential>,
    maintenance: Option<Credential>,
}

impl From<Access> for RoleAccess {
    fn from(access: Access) -> Self {
        Self { access, plugin: None, commit: None, maintenance: None }
    }
}

impl RoleAccess {
    /// Gives the role a credential of its own.
    #[must_use]
    pub fn with(mut self, role: Role, credential: Credential) -> Self {
        match role {
            Role::Plugin => self.plugin = Some(credential),
            Role::Commit => self.commit = Some(credential),
            Role::Maintenance => self.maintenance = Some(credential),
        }
        self
    }

    /// The vault's own access: makes the vault and its instances.
    pub fn vault(&self) -> &Access {
        &self.access
    }

    /// What the role uses, for every instance.
    pub fn of(&self, role: Role) -> Access {
        let own = match role {
            Role::Plugin => &self.plugin,
            Role::Commit => &self.commit,
            Role::Maintenance => &self.maintenance,
        };
        Access { credential: own.clone().or_else(|| self.access.credential.clone()), ..self.access.clone() }
    }

    /// What the role uses in one instance for `valid`, which is longer than the job: see [`Access::narrowed`].
    pub fn for_instance(&self, role: Role, instance_id: &str, valid: Duration) -> Result<Access, Error> {
        let expiry = crate::clock::now().checked_add(valid).unwrap_or(jiff::Timestamp::MAX);
        self.of(role).narrowed(instance_id, role, expiry)
    }
}

fn instance_dir(root: &Path, instance_id: &str) -> PathBuf {
    root.join(INSTANCES_DIR).join(instance_id)
}

fn instance_container(name: &str, instance_id: &str) -> String {
    format!("{name}-{instance_id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn access(location: Location) -> Access {
        Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(1) }
    }

    #[test]
    fn texts_become_locations_and_texts_again() {
        let long = format!("azure://account1/{}", "n".repeat(30));
        for text in ["azure://account1/vault", "azure://abc/a-b-3", &long] {
            assert_eq!(text.parse::<Location>().expect(text).to_string(), text);
        }
        let folder = std::env::temp_dir().join("vault");
        let text = folder.display().to_string();
        assert_eq!(format!("{text}/").parse(), Ok(Location::Folder(folder)));
        let too_long = format!("azure://account1/{}", "n".repeat(31));
        for text in [
            "",
            "relative/folder",
            "./vault",
            "azure://account1",
            "azure://account1/",
            "azure://account1/ab",
            "azure://account1/a--b",
            "azure://account1/-ab",
            "azure://account1/ab-",
            "azure://account1/Vault",
            "azure://account1/a/b",
            "azure://Account/vault",
            "azure://my-account/vault",
            "azure:///vault",
            &too_long,
        ] {
            let error = text.parse::<Location>().expect_err(text);
            assert_eq!(error.text, text);
        }
        let error = "azure://account1/vault?sig=secret".parse::<Location>().expect_err("a query");
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn the_longest_name_makes_a_container_of_63_characters() {
        assert_eq!(instance_container(&"n".repeat(30), ID).len(), 63);
        let azure = access("azure://account1/vault".parse().expect("location"));
        assert_eq!(azure.restic_repository(ID), format!("azure:vault-{ID}:/repo"));
        let error = azure.open_root().expect_err("no credential");
        assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_folder_vault_is_made_in_steps_and_restic_finds_its_repository() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("vault");
        let access = access(Location::Folder(root.clone()));
        let error = access.create_instance(ID).await.expect_err("the vault is missing");
        assert!(matches!(error, Error::NoStore { .. }), "{error:?}");
        assert!(!root.exists());
        for _ in 0..2 {
            access.create_root().await.expect("root");
            access.create_instance(ID).await.expect("instance");
        }
        let key = Key::new("repo/config").expect("key");
        let store = access.open_instance(ID).expect("store");
        store.put_if_absent(&key, "x".into()).await.expect("put");
        assert!(Path::new(&access.restic_repository(ID)).join("config").is_file());
        let listed = access.open_root().expect("root").list_page("", None).await.expect("list").entries;
        let listed: Vec<String> = listed.iter().map(|entry| entry.key.to_string()).collect();
        assert_eq!(listed, [format!("instances/{ID}/repo/config")]);
        for id in ["", "../..", &ID.to_uppercase(), "x"] {
            assert!(matches!(access.open_instance(id), Err(Error::Rejected { .. })), "{id}");
        }
    }
}
