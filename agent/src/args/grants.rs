//! `--print-grants` of `vaultferry discover postgres`.

#[derive(Debug, clap::Args)]
pub struct Grants {
    /// Print the script for psql that gives a role the least rights for backups, and do nothing else
    #[arg(long)]
    pub print_grants: bool,
    /// With --print-grants: the role that backups log in as
    #[arg(long, value_name = "ROLE", default_value = "backup", requires = "print_grants")]
    pub role: String,
    /// With --print-grants: a database; may be given several times [default: the one that psql is connected to]
    #[arg(long = "database", value_name = "NAME", requires = "print_grants")]
    pub databases: Vec<String>,
    /// With --print-grants: table by table, also where the role pg_read_all_data would do (PostgreSQL 14 and newer)
    #[arg(long, requires = "print_grants")]
    pub per_database: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        grants: Grants,
    }

    #[test]
    fn the_script_is_for_the_role_and_the_databases_that_are_named() {
        let words = ["x", "--print-grants", "--role", "r", "--database", "a", "--database", "b", "--per-database"];
        let Grants { print_grants, role, databases, per_database } = Alone::try_parse_from(words).unwrap().grants;
        assert_eq!((print_grants, role.as_str(), per_database), (true, "r", true));
        assert_eq!(databases, ["a", "b"]);
        assert!(!Alone::try_parse_from(["x"]).unwrap().grants.print_grants, "the default of --role asks for nothing");
        assert!(Alone::try_parse_from(["x", "--role", "r"]).is_err());
    }
}
