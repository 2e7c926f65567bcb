//! What belongs to the database itself and to nothing in it: pg_restore gives it back only to a database that it makes itself, under the name
//! that it had.

use serde::{Deserialize, Serialize};
use tokio_postgres::Error;

use crate::connection::Session;

/// The database as one thing.
///
/// Its encoding, its locales, its owner and its settings for all users are fields of [`super::Facts`]: those came first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Itself {
    /// `COMMENT ON DATABASE`.
    pub comment: Option<String>,
    /// How many may be connected who are no superusers; `None`: no limit.
    pub connection_limit: Option<u32>,
    /// Where its objects are that name no tablespace; `None`: the server's default.
    pub tablespace: Option<String>,
    /// Whoever may make databases may copy it. Not restored: such a database cannot be dropped.
    pub is_template: bool,
    /// Who may do what with it; `None`: what holds for every database that nobody has granted anything on.
    pub privileges: Option<Vec<Privilege>>,
    /// `ALTER ROLE … IN DATABASE … SET`.
    pub role_settings: Vec<RoleSetting>,
    /// `SECURITY LABEL ON DATABASE`.
    pub security_labels: Vec<SecurityLabel>,
}

/// One right of one role on the database. Who has granted it is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privilege {
    /// The role; `None`: everybody (PUBLIC).
    pub role: Option<String>,
    /// CREATE, CONNECT or TEMPORARY.
    pub privilege: String,
    /// It may be granted to others.
    pub grantable: bool,
}

/// A setting that holds for one role in this database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSetting {
    /// The role.
    pub role: String,
    /// As `name=value`.
    pub setting: String,
}

/// What a label provider has noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityLabel {
    /// The provider.
    pub provider: String,
    /// Its label.
    pub label: String,
}

const ABOUT: &str = "
select shobj_description(d.oid, 'pg_database'), d.datconnlimit, t.spcname::text, d.datistemplate, d.datacl is not null
from pg_database d join pg_tablespace t on t.oid = d.dattablespace where d.datname = current_database()";

/// A role that is gone may still be named, by its number.
const PRIVILEGES: &str = "
select r.rolname::text, a.privilege_type::text, a.is_grantable
from pg_database d cross join lateral aclexplode(d.datacl) a left join pg_roles r on r.oid = a.grantee
where d.datname = current_database() and (a.grantee = 0 or r.oid is not null)
order by 1, 2";

const ROLE_SETTINGS: &str = "
select r.rolname::text, s.setting
from pg_db_role_setting d join pg_roles r on r.oid = d.setrole cross join lateral unnest(d.setconfig) s(setting)
where d.setdatabase = (select oid from pg_database where datname = current_database())
order by 1, 2";

const LABELS: &str = "
select provider, label from pg_shseclabel
where classoid = 'pg_database'::regclass and objoid = (select oid from pg_database where datname = current_database())
order by 1, 2";

impl Itself {
    /// Asks the server; its user needs no right for it.
    pub(super) async fn gather(session: &Session) -> Result<Self, Error> {
        let client = session.client();
        let about = client.query_one(ABOUT, &[]).await?;
        let (limit, tablespace, is_granted): (i32, String, bool) =
            (about.try_get(1)?, about.try_get(2)?, about.try_get(4)?);
        let privileges = match is_granted {
            true => {
                let mut privileges = Vec::new();
                for row in client.query(PRIVILEGES, &[]).await? {
                    let (role, privilege, grantable) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                    privileges.push(Privilege { role, privilege, grantable });
                }
                Some(privileges)
            }
            false => None,
        };
        let mut role_settings = Vec::new();
        for row in client.query(ROLE_SETTINGS, &[]).await? {
            role_settings.push(RoleSetting { role: row.try_get(0)?, setting: row.try_get(1)? });
        }
        let mut security_labels = Vec::new();
        for row in client.query(LABELS, &[]).await? {
            security_labels.push(SecurityLabel { provider: row.try_get(0)?, label: row.try_get(1)? });
        }
        Ok(Self {
            comment: about.try_get(0)?,
            connection_limit: u32::try_from(limit).ok(),
            tablespace: Some(tablespace).filter(|name| name != "pg_default"),
            is_template: about.try_get(3)?,
            privileges,
            role_settings,
            security_labels,
        })
    }
}
