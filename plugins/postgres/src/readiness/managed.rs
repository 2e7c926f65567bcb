//! Who runs the server. At a managed service nobody is a superuser: a setting is changed by the service's own command, and some rights
//! cannot be given at all. A fix that nobody there can run is none.
//!
//! A service is known by the role that it gives its customers' administrators, which nobody else's server has. The words for people that
//! stand for what is not known here (a resource group, a parameter group) are in capitals.

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Managed {
    /// Nobody but its owner, as far as can be seen.
    Nobody,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Amazon RDS or Aurora.
    Amazon,
    /// Cloud SQL.
    Google,
}

/// Whose settings a fix changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The server that was looked at, which is a standby.
    Standby,
    /// The server that was looked at.
    Server,
}

/// When a setting counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// When the server has read its configuration again.
    AtOnce,
    /// After a restart.
    AfterARestart,
}

/// The roles of administrators, as a query for the one that is there.
pub(super) const ADMINISTRATORS: &str = "
(select min(rolname::text) from pg_roles where rolname in ('azure_pg_admin', 'rds_superuser', 'cloudsqlsuperuser'))";

impl Managed {
    /// By the administrators' role, if there is one of those.
    pub(super) fn by_role(role: Option<&str>) -> Self {
        match role {
            Some("azure_pg_admin") => Self::Azure,
            Some("rds_superuser") => Self::Amazon,
            Some("cloudsqlsuperuser") => Self::Google,
            _ => Self::Nobody,
        }
    }

    /// What sets settings of the server at `host`: a script for psql, or a command of the service. Values are plain numbers or words.
    pub(super) fn set(self, host: &str, settings: &[(&str, String)], place: Place, counts: Counts) -> String {
        let Some((flags, method)) = self.words(counts) else { return alter_system(settings, place, counts) };
        let of = match place {
            Place::Standby => "the replica's ",
            Place::Server => "",
        };
        let restart = match counts {
            Counts::AtOnce => "",
            Counts::AfterARestart => "; they count after a restart of the server",
        };
        let mut lines = vec![format!("# {of}{flags}{restart}:")];
        let each = settings.iter();
        match self {
            Self::Azure => lines.extend(each.map(|(name, value)| {
                format!(
                    "az postgres flexible-server parameter set --resource-group GROUP --server-name {} --name {name} --value {value}",
                    azure_name(host)
                )
            })),
            Self::Amazon => lines.extend(each.map(|(name, value)| {
                format!(
                    "aws rds modify-db-parameter-group --db-parameter-group-name GROUP \
                     --parameters ParameterName={name},ParameterValue={value},ApplyMethod={method}"
                )
            })),
            // One command for all: a second one would take away what the first has set.
            Self::Google | Self::Nobody => {
                let all: Vec<String> = each.map(|(name, value)| format!("{name}={value}")).collect();
                lines.push(format!("gcloud sql instances patch INSTANCE --database-flags={}", all.join(",")));
            }
        }
        lines.join("\n")
    }

    /// What the service calls settings, and how Amazon is told when to apply one. `None`: the server's own administrator sets them.
    fn words(self, counts: Counts) -> Option<(&'static str, &'static str)> {
        let method = match counts {
            Counts::AtOnce => "immediate",
            Counts::AfterARestart => "pending-reboot",
        };
        match self {
            Self::Nobody => None,
            Self::Azure => Some(("server parameters", method)),
            Self::Amazon => Some(("parameters, in a parameter group that is not the default one", method)),
            Self::Google => Some(("flags (this replaces all of them: repeat those that are set already)", method)),
        }
    }

    /// What to know besides `ALTER ROLE … BYPASSRLS`, where the administrator may not be able to run it.
    pub(super) fn bypassing(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Azure | Self::Amazon | Self::Google => {
                "\n-- Before PostgreSQL 16 the administrator of a managed service may not do that. There, back up as the owner of these \
                 tables:\n-- vaultferry instance move INSTANCE --source URI-WITH-THAT-USER"
            }
        }
    }
}

fn alter_system(settings: &[(&str, String)], place: Place, counts: Counts) -> String {
    let who = match place {
        Place::Standby => "on the standby, as a superuser",
        Place::Server => "as a superuser",
    };
    let mut lines = vec![match counts {
        Counts::AtOnce => format!("-- {who}:"),
        Counts::AfterARestart => format!("-- {who}; it counts after a restart of the server:"),
    }];
    lines.extend(settings.iter().map(|(name, value)| format!("ALTER SYSTEM SET {name} = {value};")));
    if counts == Counts::AtOnce {
        lines.push("SELECT pg_reload_conf();".to_owned());
    }
    lines.join("\n")
}

/// A flexible server's name is the first part of its host's.
fn azure_name(host: &str) -> &str {
    let name = host.split('.').next().unwrap_or_default();
    if host.contains(".postgres.database.") && !name.is_empty() { name } else { "SERVER" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_is_one_that_somebody_there_can_run() {
        let settings = [("hot_standby_feedback", "on".to_owned())];
        let set = |role, counts| {
            let managed = Managed::by_role(role);
            managed.set("shop-copy.postgres.database.azure.com", &settings, Place::Standby, counts)
        };
        assert_eq!(
            set(None, Counts::AtOnce),
            "-- on the standby, as a superuser:\nALTER SYSTEM SET hot_standby_feedback = on;\nSELECT pg_reload_conf();"
        );
        assert_eq!(
            set(Some("somebody"), Counts::AfterARestart),
            "-- on the standby, as a superuser; it counts after a restart of the server:\n\
             ALTER SYSTEM SET hot_standby_feedback = on;"
        );
        for (role, part) in [
            ("azure_pg_admin", "--server-name shop-copy --name hot_standby_feedback --value on"),
            ("rds_superuser", "ParameterName=hot_standby_feedback,ParameterValue=on,ApplyMethod=pending-reboot"),
            ("cloudsqlsuperuser", "--database-flags=hot_standby_feedback=on"),
        ] {
            let fix = set(Some(role), Counts::AfterARestart);
            assert!(fix.contains(part) && fix.contains("after a restart"), "{fix}");
            assert!(!fix.contains("ALTER SYSTEM"), "nobody may do that there: {fix}");
        }
        assert_eq!(azure_name("db.example"), "SERVER");
        // Google's command replaces all flags, so there is one for several.
        let two = [settings[0].clone(), ("wal_receiver_status_interval", "10".to_owned())];
        let fix = Managed::Google.set("h", &two, Place::Standby, Counts::AtOnce);
        assert!(fix.ends_with("--database-flags=hot_standby_feedback=on,wal_receiver_status_interval=10"), "{fix}");
        let fix = Managed::Amazon.set("h", &two, Place::Standby, Counts::AtOnce);
        assert_eq!(fix.matches("aws rds").count(), 2, "{fix}");
    }
}
