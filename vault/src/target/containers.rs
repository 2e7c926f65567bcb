//! The containers of a storage account: where files can be restored to (P66).

use url::Url;

use super::Error;
use crate::store::azure::{self, Azure, Credential};
use crate::store::retry;

/// Stands in the place of a container's name while the account itself is asked.
const NO_CONTAINER: &str = "none";

/// The names of the account's containers that begin with `prefix`, ascending. `endpoint` is where its blobs are; empty: in Azure's public
/// cloud. The credential must be allowed to list: an account key, or a signature for the account with the right `l`. The errors are those of
/// a target.
pub async fn containers(
    account: &str,
    prefix: &str,
    endpoint: &str,
    credential: Option<Credential>,
    retry: retry::Config,
) -> Result<Vec<String>, Error> {
    let target = format!("azure://{account}");
    let Some(credential) = credential else {
        return Err(Error::NotAccessible { target, detail: "no credential was given".to_owned() });
    };
    let endpoint = match endpoint {
        "" => None,
        text => match Url::parse(text) {
            Ok(url) => Some(url),
            Err(error) => return Err(Error::Rejected { target, detail: format!("its endpoint is no URL: {error}") }),
        },
    };
    let (account, container) = (account.to_owned(), NO_CONTAINER.to_owned());
    let azure = azure::Config { account, container, endpoint, credential };
    let azure = Azure::new(&azure).map_err(|error| Error::from_store(error, &target, ""))?;
    let listed = retry::retrying(&retry, &target, "list containers", || azure.list_containers(prefix)).await;
    let mut names = listed.map_err(|error| Error::from_store(error, &target, ""))?;
    names.sort_unstable();
    Ok(names)
}
