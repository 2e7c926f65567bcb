//! Reasons and problems: the one way in which a failure is told, in this process or across gRPC.
//!
//! A [`Reason`] is a stable name; `proto/errors/<Reason>.md` explains it, and a test compares both lists. Names that begin with
//! `UserError` are those of the backup services whose rules this product implements.

use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `google.rpc.ErrorInfo.domain` of every reason.
pub const DOMAIN: &str = "vaultferry";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $code:ident, $fix:literal;)*) => {
        /// Why something failed: a stable name that programs may compare.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)* }
            }

            /// The gRPC code that goes with it.
            pub fn code(self) -> Code {
                match self { $(Reason::$name => Code::$code,)* }
            }

            /// What to do, when nothing more exact is known.
            pub fn default_fix(self) -> &'static str {
                match self { $(Reason::$name => $fix,)* }
            }
        }
    };
}

reasons! {
    // Requests
    /// A request lacks a field, or a field has a value that it cannot have.
    InvalidRequest => InvalidArgument, "Correct the request as the message says.";
    /// A policy document has faults; the message lists all of them.
    InvalidPolicy => InvalidArgument, "Correct the policy as the message says; docs/policies.md shows the format.";
    /// A source or target URI cannot be read, or has a password in it.
    InvalidSource => InvalidArgument, "Write it as postgres://user@host:port/database, without a password; name one with --passfile or --password-env.";
    /// The linked policy has no rule of that name.
    RuleNotFound => InvalidArgument, "Choose one of the policy's rules: vaultferry policy show NAME.";
    /// The policy is for another type of source.
    PolicySourceTypeMismatch => InvalidArgument, "Choose a policy whose source_type is the source's.";
    /// A change of policy would keep points shorter than now, and nobody has confirmed that (D18).
    RetentionShortened => FailedPrecondition, "Look at what it does (--preview). If that is meant, say so with --yes.";
    /// Backup instances are linked to the policy, so it cannot be deleted.
    PolicyInUse => FailedPrecondition, "Link those instances to another policy first; vaultferry instance list shows which one each of them follows.";
    /// Somebody else changed the policy at the same moment; nothing was written.
    PolicyRaced => Aborted, "Look at what it is now (vaultferry policy show NAME), then change it again if that is still right.";
    /// Source or target are in another region than the vault (P17, P18, V2).
    RegionMismatch => FailedPrecondition, "Use a vault in the source's region, or correct --region.";
    /// No policy has that name or id.
    PolicyNotFound => NotFound, "vaultferry policy list shows the policies.";
    /// No backup instance has that name or id.
    InstanceNotFound => NotFound, "vaultferry instance list shows the instances.";
    /// No server of that name, id or URI is a source of this vault.
    ServerNotFound => NotFound, "vaultferry server list shows the servers.";
    /// The instance has no such recovery point.
    PointNotFound => NotFound, "vaultferry point list INSTANCE shows the points.";
    /// No job has that id.
    JobNotFound => NotFound, "vaultferry job list shows the jobs.";
    /// Something else has that name already.
    NameTaken => AlreadyExists, "Choose another name.";
    /// The source is protected by another instance of this vault already.
    SourceAlreadyProtected => AlreadyExists, "Use the instance that exists: vaultferry instance list.";
    /// A job of this instance is running already.
    InstanceBusy => Aborted, "Wait for the running job (vaultferry job watch ID), or cancel it.";
    /// The instance is paused or stopped, and so not backed up.
    ProtectionStopped => FailedPrecondition, "Protect it again: vaultferry instance resume INSTANCE.";
    /// The instance was stopped and its data deleted.
    InstanceDeleted => FailedPrecondition, "Bring it back first: vaultferry instance undelete INSTANCE.";
    /// The instance has no recovery point yet.
    NoRecoveryPoint => FailedPrecondition, "Run a backup first: vaultferry backup INSTANCE --wait.";
    // Configuration and agent
    /// The configuration has faults; the message lists all of them.
    InvalidConfiguration => InvalidArgument, "Correct the configuration file; vaultferry agent check-config checks it.";
    /// The agent does not answer at its endpoint.
    AgentUnreachable => Unavailable, "Start it with: vaultferry agent run --config FILE, or name its endpoint with --endpoint.";
    /// A bug, or a machine out of resources.
    Internal => Internal, "See the agent's log. If it happens again, report it with that log.";
    // Jobs and plugins
    /// The agent or the machine stopped while the job ran.
    Interrupted => Aborted, "Start it again; what was uploaded is reused.";
    /// Somebody cancelled the job.
    Cancelled => Cancelled, "Nothing, if it was meant; otherwise start it again.";
    /// No plugin is known for this type of source, or it cannot be started.
    PluginNotFound => FailedPrecondition, "Install the plugin, or correct the configuration.";
    /// The plugin's process ended by itself in the middle of a job.
    PluginCrashed => Aborted, "Start the job again. The plugin's last words are in the message and in the agent's log.";
    /// The plugin gave no sign of life.
    PluginTimeout => DeadlineExceeded, "Start the job again; if it happens again, look at the load of this machine.";
    /// The plugin speaks another protocol, or broke it.
    PluginProtocol => Internal, "Install plugin and agent of the same version.";
    /// A file system cannot be frozen for a snapshot: of its type, its place, or because an image lies on it.
    FreezeRefused => FailedPrecondition, "Name other mount points to freeze, or choose another provider of snapshots; docs/freeze.md says what can be frozen.";
    /// File systems could not be frozen this time, or did not stay frozen until the snapshot was taken.
    FreezeFailed => Aborted, "Start the backup again when less is written; docs/freeze.md says how to see what is frozen, and how to thaw it.";
    // Vault
    /// There is no vault at the configured location.
    VaultNotFound => FailedPrecondition, "Create it with: vaultferry vault init --config FILE.";
    /// The vault's format is newer than this program, or its records cannot be read.
    VaultUnreadable => FailedPrecondition, "Use the newest version of Vaultferry; if it is that, restore the named file from a copy of the vault.";
    /// The vault's folder cannot be written.
    VaultNotWritable => FailedPrecondition, "Give the agent's user the right to write there, or choose another location.";
    /// No space is left for the vault.
    VaultFull => ResourceExhausted, "Make space on the vault's storage, then start the job again; what was uploaded is reused.";
    /// A warning: little space is left for the vault.
    VaultSpaceLow => ResourceExhausted, "Make space on the vault's storage, or enlarge it, before backups fail; vaultferry vault prune gives back what no point needs.";
    /// The store refused the credential, or the credential lacks a right.
    VaultAccessDenied => PermissionDenied, "Correct the credential, or grant it the right that the message names.";
    /// The store did not answer, or answered with errors until the deadline.
    VaultUnavailable => Unavailable, "Look at the network and the store's state, then start the job again; what was uploaded is reused.";
    /// The vault's key file is not there.
    VaultKeyMissing => FailedPrecondition, "Put the vault's key file back at the path in the message.";
    /// The vault's key file does not open this vault.
    VaultKeyWrong => FailedPrecondition, "Put the key file of this vault at the path in the message.";
    /// Azure Key Vault, which keeps the vault's key, did not answer.
    KeyVaultUnavailable => Unavailable, "Look at the network and at Key Vault's state, then try again; a recovery key opens the vault without it.";
    /// Azure Key Vault refused the token, or the token lacks a right on the key.
    KeyVaultAccessDenied => PermissionDenied, "Renew the token that [vault.key] names, and grant its identity the role Key Vault Crypto User on the key.";
    /// A pack, an index, a snapshot or another record of the repository is damaged or missing.
    RepositoryDamaged => DataLoss, "Restore another point, and keep the vault as it is. Missing files are stored again by the next backup, as far as the source still has them.";
    /// A file that a staged backup needs is missing or has another size; it was not committed.
    StagedIncomplete => DataLoss, "Start the backup again.";
    /// Pruning marked data that a running backup reused; it was not committed.
    PrunedMeanwhile => Aborted, "Start the backup again.";
    /// A job may commit one snapshot only, and this job has committed another one.
    JobAlreadyCommitted => FailedPrecondition, "Start a new backup; vaultferry point list INSTANCE shows what is there.";
    /// The point lies in the archive and must be rehydrated before it can be read.
    PointArchived => FailedPrecondition, "Restore it: a restore rehydrates what it needs and goes on by itself.";
    /// An immutability date, a legal hold or a point's hold forbids the deletion.
    DataProtected => FailedPrecondition, "Wait until the date in the message, or release the hold: vaultferry point release INSTANCE POINT.";
    /// The vault's storage cannot do what was asked (a folder cannot make files immutable, for example).
    VaultUnsupported => FailedPrecondition, "Use a vault on Azure with version-level immutability, or leave the setting out.";
    /// Locked immutability is for ever: it is neither undone nor shortened.
    VaultSettingsLocked => FailedPrecondition, "Leave it as it is: locked immutability stays, and its days only grow. vaultferry vault settings shows it.";
    /// Somebody else changed the vault's settings at the same moment; nothing was written.
    VaultSettingsRaced => Aborted, "Look at what they are now (vaultferry vault settings), then change them again if that is still right.";
    /// Another maintenance job (prune, check, archive) of this instance is running.
    MaintenanceBusy => Aborted, "Wait until it has ended: vaultferry job list.";
    /// Another agent works with this vault.
    VaultOwnedByOther => FailedPrecondition, "Stop the other agent, then take the vault over: vaultferry vault attach --take-over.";
    // Machines
    /// The machine cannot reach its vault: outbound access has to be allowed (V38).
    ExtensionSnapshotFailedNoNetwork => Unavailable, "vaultferry agent network-check, run on that machine, says at which stage the way to the vault ends and prints the rule that may be missing.";
    /// A script of the folder, or its configuration, may not be run: it is missing, or others than its owner could change it.
    ScriptNotAllowed => FailedPrecondition, "Give folder, configuration and scripts to root: chmod 700 for folder and scripts, 600 for the configuration.";
    /// A pre-script or post-script failed, or took longer than it may.
    ScriptFailed => Aborted, "Read what the script says, and mend it; docs/vm-scripts.md shows how to try it by hand.";
    // PostgreSQL
    /// The server does not answer, or its name is not known: no network line of sight (P76).
    UserErrorMissingNetworkSecurityPermissions => FailedPrecondition, "Look at host name and port, that the server runs and listens there, and that firewalls let this machine in.";
    /// The server refused the login.
    UserErrorDBUserAuthFailed => FailedPrecondition, "Correct user or password (--passfile, --password-env or --identity), and the server's pg_hba.conf.";
    /// This machine's identity lacks a right: in Azure, or in the database that a token logs in to (P71).
    UserErrorMSIMissingPermissions => FailedPrecondition, "Give the machine's identity the role that the message names; for a subscription or a server it is Reader.";
    /// The server takes no logins by Microsoft Entra ID, or has no such user for this identity (P74).
    UserErrorBackupUserAuthFailed => FailedPrecondition, "Set a Microsoft Entra administrator on the server, and let it make the user: select * from pgaadauth_create_principal('NAME', false, false);";
    /// The service that issues tokens did not answer.
    IdentityUnavailable => Unavailable, "See that it answers: curl -H Metadata:true 'http://169.254.169.254/metadata/instance?api-version=2021-02-01'. Only machines of Azure have it; elsewhere use another login.";
    /// The database does not exist on the server.
    UserErrorDBNotFound => FailedPrecondition, "Look at the database's name: psql -l lists them.";
    /// A restore never overwrites: the database exists on the target server.
    UserErrorDatabaseNameAlreadyInUse => FailedPrecondition, "Choose another name for the restored database with --database.";
    /// The user lacks a right on the server or in the database.
    UserErrorMissingDBPermissions => FailedPrecondition, "Grant the right that the message names.";
    /// Row-level security would hide rows from the backup's user, so pg_dump refuses.
    RowSecurityHidesRows => FailedPrecondition, "Let the backup's user see all rows: ALTER ROLE name BYPASSRLS.";
    /// The connection goes through a pooler that gives statements of one session to several servers' processes, or refuses its parameters.
    PoolerUnsupported => FailedPrecondition, "Name the server itself in the source's URI, or a pool in session mode.";
    /// A table stayed locked for longer than a backup waits for it.
    LockTimeout => Aborted, "Let the session that the message names come to its end, then start the backup again. [postgres] lock_timeout and lock_retries say how long it waits.";
    /// A standby cancelled the backup's query, because it was in the way of replication.
    ReplicaConflict => Aborted, "Start the backup again; on the standby, set hot_standby_feedback = on or a longer max_standby_streaming_delay, or back up the primary.";
    /// A standby is behind its primary, so a backup of it is as old as that.
    ReplicaBehind => FailedPrecondition, "Look at the standby's replication (pg_stat_replication on the primary, the standby's log), or back up the primary.";
    /// A backup's snapshot was held for longer than it may be: the source keeps old row versions for so long.
    SnapshotTooOld => Aborted, "Find what makes the backup long (vaultferry job show ID), or raise [postgres] snapshot_budget and snapshot_limit.";
    /// Somebody waits for a table that the backup has locked against changes of its definition.
    DdlWaits => Aborted, "Run changes of tables at other times than backups; [postgres] ddl_budget and yield_to_ddl say how long they wait.";
    /// The server has too few locks for a transaction that reads every table.
    TooFewLocks => FailedPrecondition, "Raise max_locks_per_transaction in the server's configuration, and restart the server.";
    /// A warning: pg_dump has made the dump, and has warned of something.
    DumpWarned => FailedPrecondition, "Read what pg_dump says; a restore may need what it names.";
    /// A warning: the server's roles and tablespaces could not be read, so the point has no globals.sql.
    GlobalsNotRead => FailedPrecondition, "The dump is complete. Keep the roles otherwise (pg_dumpall --globals-only), or mend what pg_dumpall says.";
    /// The server ended the connection.
    UserErrorServerConnectionClosed => Unavailable, "Look at the server's log, then start the job again.";
    /// The server does not offer the TLS that was asked for, or its certificate is not trusted.
    TlsFailed => FailedPrecondition, "Correct sslmode or sslrootcert in the source's URI, or the server's certificate.";
    /// No pg_dump or pg_restore was found.
    ClientNotFound => FailedPrecondition, "Install PostgreSQL's client programs, or name their folders in [postgres] client_dirs.";
    /// The server is newer than every pg_dump found here.
    ClientTooOld => FailedPrecondition, "Install the client programs of the server's major version, and name their folder in [postgres] client_dirs.";
    /// pg_dump failed; its own words are in the message.
    DumpFailed => FailedPrecondition, "Mend what pg_dump says, then start the backup again.";
    /// pg_restore failed; its own words are in the message, and the unfinished database was removed.
    RestoreFailed => FailedPrecondition, "Mend what pg_restore says, then start the restore again.";
    /// What was restored has fewer objects, or other numbers of rows, than the point; it was removed.
    RestoreIncomplete => DataLoss, "Restore again with --keep-failed and look at what differs; if it happens again, restore another point and report it.";
    /// A warning: the database is restored, but something that belongs to it was left out or could not be restored.
    PartlyRestored => FailedPrecondition, "Look at what the message names, and make it by hand where it matters.";
    /// A note of a restore's plan: what was chosen needs these, so they come with it.
    AlsoRestored => FailedPrecondition, "Nothing, if they are not in the way at the target.";
    /// Owners or grantees of the backed-up objects do not exist on the target server (P19: roles are not restored unless that is asked for).
    RolesMissing => FailedPrecondition, "Create the roles on the target server, or restore without owners and privileges: --no-owner (row-level security policies for a role need that role all the same).";
    /// The target server does not offer an extension of the database.
    ExtensionMissing => FailedPrecondition, "Install the extension's package on the target server (a managed service: allow it there), or restore only the schemas that do without it.";
    /// The target server cannot compare texts as the source does.
    LocaleMissing => FailedPrecondition, "Make the locale known to the target server's operating system and restart the server, or restore to a server that has it.";
    /// The target server's disk is full, or would be.
    TargetFull => ResourceExhausted, "Make space where the target server keeps its data, then start the restore again.";
    /// A warning: the database is larger than what a logical backup is recommended for (P16, D20).
    SizeAboveRecommended => FailedPrecondition, "Measure how long backup and restore take; a physical backup of the server restores faster.";
    // Machines' disks
    /// A disk is not there, or cannot be read.
    DiskUnreadable => FailedPrecondition, "Look at the path in the message: it must be a raw image or a block device of the agent's machine that the agent may read.";
    /// File systems could not be frozen, or did not stay so, and the settings want no less.
    ConsistencyNotReached => FailedPrecondition, "Mend what the message says, or allow points as after a power cut: [vm] on_freeze_failure = \"crash-consistent\".";
    /// A warning: what has changed since the last point is not known for sure, so everything was read.
    ChangeTrackingLost => FailedPrecondition, "Nothing, if it happens once: the point is whole, and the next backup compares again. If it happens again, look at what the message names.";
    // Snapshots of disks
    /// No snapshot can be taken of these disks as they are, or not of all of them at one instant.
    SnapshotUnsupported => FailedPrecondition, "Choose another provider, or put the disks where snapshots are: docs/vm-snapshots.md has a table.";
    /// A snapshot could not be taken, opened or removed.
    SnapshotFailed => Aborted, "Mend what the message says, then start the backup again; what a failed one leaves is removed by the next.";
    /// Somebody has the disk open for writing, and there is no snapshot of it.
    SourceInUse => FailedPrecondition, "Turn the machine off, or unmount the device, for the backup; or use a provider with snapshots: docs/vm-snapshots.md.";
    /// The disk changed while it was read, or its snapshot overflowed; nothing was committed.
    SourceChanged => Aborted, "Leave the disk alone until the backup has ended, then start it again; or use a provider with snapshots: docs/vm-snapshots.md.";
    // Restore targets
    /// A block device is in use, or was not confirmed, so nothing is written to it.
    TargetInUse => FailedPrecondition, "Unmount it and take it out of what uses it; if what is on it may be lost, name it again with --yes-overwrite.";
    /// A file of that name exists in the target.
    TargetExists => FailedPrecondition, "Choose an empty folder or container.";
    /// The target folder cannot be written, or is full; or the target server is a standby.
    TargetNotWritable => FailedPrecondition, "Give the agent's user the right and the space to write there, or choose another target.";
    /// The target container is missing, or the credential has no right on it (P77).
    UserErrorContainerNotAccessible => FailedPrecondition, "Create the container, and grant Storage Blob Data Contributor on it (or name a credential that has it with --credential-env).";
    // Azure
    /// Azure has no such subscription, resource group, account or other resource, or does not show it to this identity.
    AzureNotFound => NotFound, "Correct the name (az account list shows subscriptions, az group list resource groups), or give the machine's identity the role Reader on it.";
    /// Azure did not answer, or was busy until the deadline.
    AzureUnavailable => Unavailable, "Look at the network and at Azure's state, then try again.";
    /// Azure understood and refused; its own words are in the message.
    AzureRefused => FailedPrecondition, "Mend what Azure says, then try again; its support finds the request by the correlation id in the message.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or(())
    }
}

/// A failure as its reader needs it: the reason's name, what happened, and what to do. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Problem {
    /// The stable name.
    pub reason: Reason,
    /// What happened, in one or a few sentences.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    /// A problem with its reason's default fix.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), fix: reason.default_fix().to_owned() }
    }

    /// The same problem with a more exact fix.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// The problem that a peer sent; a status without our details becomes [`Reason::Internal`], a broken connection the reason `otherwise`.
    pub fn from_status(status: &Status, otherwise: Reason) -> Self {
        let details = status.get_error_details();
        let known = details.error_info().filter(|info| info.domain == DOMAIN);
        let reason = known.and_then(|info| info.reason.parse::<Reason>().ok());
        match (reason, known) {
            (Some(reason), Some(info)) => {
                let fix = info.metadata.get("fix").cloned().unwrap_or_else(|| reason.default_fix().to_owned());
                Self { reason, message: status.message().to_owned(), fix }
            }
            _ => {
                let reason = match status.code() {
                    Code::Unavailable | Code::Unknown | Code::Cancelled => otherwise,
                    _ => Reason::Internal,
                };
                Self::new(reason, format!("{} ({:?})", status.message(), status.code()))
            }
        }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let metadata = [("fix".to_owned(), problem.fix)];
        let details = ErrorDetails::with_error_info(problem.reason.as_str(), DOMAIN, metadata);
        Status::with_error_details(problem.reason.code(), problem.message, details)
    }
}

impl From<Problem> for crate::control::v1::Problem {
    fn from(problem: Problem) -> Self {
        Self { reason: problem.reason.as_str().to_owned(), message: problem.message, fix: problem.fix }
    }
}

/// The messages of an error and of all its causes, separated by ": ", without repeating one that the outer message ends with.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_page_and_every_page_a_reason() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/errors");
        let mut pages: Vec<String> = std::fs::read_dir(dir)
            .expect("proto/errors exists")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().trim_end_matches(".md").to_owned())
            .collect();
        pages.sort();
        let mut reasons: Vec<String> = Reason::ALL.iter().map(|reason| reason.to_string()).collect();
        reasons.sort();
        assert_eq!(reasons, pages);
        for reason in Reason::ALL {
            let page = std::fs::read_to_string(format!("{dir}/{reason}.md")).expect("page");
            assert!(page.starts_with(&format!("# {reason}\n")), "{reason}.md begins with its name");
            assert!(
                page.contains("\n## What happened\n") && page.contains("\n## What to do\n"),
                "{reason}.md has both parts"
            );
        }
    }

    #[test]
    fn every_reason_stands_once_among_the_situations() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reasons.md")).expect("docs/reasons.md");
        for reason in Reason::ALL {
            let link = format!("| [{reason}](../proto/errors/{reason}.md) | ");
            let count = page.lines().filter(|line| line.starts_with(&link)).count();
            assert_eq!(count, 1, "docs/reasons.md: put {reason} into the table of its situation");
        }
    }

    #[test]
    fn a_problem_survives_the_wire() {
        for reason in Reason::ALL {
            let problem = Problem::new(*reason, "what happened").with_fix("do this");
            assert_eq!(Problem::from_status(&Status::from(problem.clone()), Reason::Internal), problem);
        }
    }
}
