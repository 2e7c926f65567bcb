//! The catalog's words as records of the vault, and back: what is written there is what a rebuilt catalog is made of.

use std::path::PathBuf;

use vaultferry_vault::Id;
use vaultferry_vault::records::{self, InstanceRecord, PointCreated, PolicyRecord, ServerRecord, SourceLogin};

use crate::catalog::{Credential, Instance, Point, Policy, Server, Standing};

/// A policy's version, as the vault keeps it.
pub(crate) fn policy_record(policy: &Policy) -> PolicyRecord {
    PolicyRecord {
        version: records::VERSION,
        name: policy.name.clone(),
        policy_version: policy.version,
        create_time: policy.create_time,
        document: policy.document.clone(),
        id: policy.id.clone(),
        deleted: policy.deleted,
    }
}

/// The policy that a record is of. Early records have no id: theirs is made of the name, so that all versions have the same.
pub(crate) fn policy_of(record: PolicyRecord) -> Policy {
    let id = match record.id.is_empty() {
        true => Id::of(format!("vaultferry-policy:{}", record.name).as_bytes()).to_string()[..32].to_owned(),
        false => record.id,
    };
    let (name, version, create_time) = (record.name, record.policy_version, record.create_time);
    Policy { id, name, version, create_time, document: record.document, deleted: record.deleted }
}

/// An instance, as the vault keeps it.
pub(crate) fn instance_record(instance: &Instance) -> InstanceRecord {
    InstanceRecord {
        version: records::VERSION,
        id: instance.id.clone(),
        name: instance.name.clone(),
        create_time: instance.create_time,
        source_type: instance.source_type.clone(),
        source_uri: instance.source_uri.clone(),
        region: instance.region.clone(),
        policy: instance.policy.clone(),
        login: login(&instance.credential),
        source_identity: instance.source_identity.clone(),
        protection: instance.protection.clone(),
    }
}

/// The instance that a record is of. Early records have no identity: the URI stands for it, which finds a source that is protected twice
/// only when it is spelt the same.
pub(crate) fn instance_of(record: InstanceRecord) -> Instance {
    let source_identity = match record.source_identity.is_empty() {
        true => record.source_uri.clone(),
        false => record.source_identity,
    };
    Instance {
        id: record.id,
        name: record.name,
        create_time: record.create_time,
        source_type: record.source_type,
        source_uri: record.source_uri,
        source_identity,
        region: record.region,
        policy: record.policy,
        credential: credential(record.login),
        protection: record.protection,
        unsettled: false,
    }
}

/// A server, as the vault keeps it. `removed`: it is no source any more.
pub(crate) fn server_record(server: &Server, removed: bool) -> ServerRecord {
    ServerRecord {
        version: records::VERSION,
        id: server.id.clone(),
        name: server.name.clone(),
        create_time: server.create_time,
        source_type: server.source_type.clone(),
        server_uri: server.server_uri.clone(),
        server_identity: server.server_identity.clone(),
        region: server.region.clone(),
        policy: server.policy.clone(),
        login: login(&server.credential),
        include: server.include.clone(),
        exclude: server.exclude.clone(),
        removed,
    }
}

/// The server that a record is of; `None`: it was removed.
pub(crate) fn server_of(record: ServerRecord) -> Option<Server> {
    (!record.removed).then(|| Server {
        id: record.id,
        name: record.name,
        create_time: record.create_time,
        source_type: record.source_type,
        server_uri: record.server_uri,
        server_identity: record.server_identity,
        region: record.region,
        policy: record.policy,
        credential: credential(record.login),
        include: record.include,
        exclude: record.exclude,
    })
}

fn login(credential: &Credential) -> SourceLogin {
    match credential {
        Credential::None => SourceLogin::Default,
        Credential::Passfile(path) => SourceLogin::Passfile(path.display().to_string()),
        Credential::PasswordEnv(name) => SourceLogin::PasswordEnv(name.clone()),
        Credential::Identity(identity) => SourceLogin::Identity(identity.clone()),
    }
}

fn credential(login: SourceLogin) -> Credential {
    match login {
        SourceLogin::Default => Credential::None,
        SourceLogin::Passfile(path) => Credential::Passfile(PathBuf::from(path)),
        SourceLogin::PasswordEnv(name) => Credential::PasswordEnv(name),
        SourceLogin::Identity(identity) => Credential::Identity(identity),
    }
}

/// A point, from what its first event tells.
pub(crate) fn point_of(instance_id: &str, id: Id, time: jiff::Timestamp, created: PointCreated) -> Point {
    Point {
        id,
        instance_id: instance_id.to_owned(),
        job_id: created.job_id,
        time,
        rule: created.rule,
        policy: created.policy,
        policy_version: created.policy_version,
        slot: created.slot,
        keep_until: created.keep_until,
        streams: created.streams,
        source_bytes: created.source_bytes,
        stored_bytes: created.stored_bytes,
        capture: created.capture,
        standing: Standing::default(),
    }
}
