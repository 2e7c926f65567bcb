//! What a plugin finds when it looks at a source: faults that stand in the way of a backup, and what is worth knowing.

use vaultferry_proto::{Problem, Reason};

use crate::report::Warning;

/// How many objects one finding names; the rest is counted.
pub const OBJECTS_MAX: usize = 100;

/// One thing about a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its stable name, which has a page.
    pub reason: Reason,
    /// What was seen, in a sentence. Never holds a secret.
    pub message: String,
    /// What mends it: the exact statements or commands where there are any.
    pub fix: String,
    /// What it concerns, as the source names it; at most [`OBJECTS_MAX`] of them.
    pub objects: Vec<String>,
    /// Of all of them.
    pub object_count: u64,
    /// No backup is possible before it is mended.
    pub blocking: bool,
}

impl Finding {
    /// A fault that stands in the way of every backup, with its reason's default fix.
    pub fn blocking(reason: Reason, message: impl Into<String>) -> Self {
        Self::from(Problem::new(reason, message))
    }

    /// Something that does not stand in the way.
    pub fn warning(reason: Reason, message: impl Into<String>) -> Self {
        Self { blocking: false, ..Self::blocking(reason, message) }
    }

    /// The same with a more exact fix.
    #[must_use]
    pub fn with_fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }

    /// The same with what it concerns: the first of `object_count` in all.
    #[must_use]
    pub fn with_objects(self, mut objects: Vec<String>, object_count: u64) -> Self {
        objects.truncate(OBJECTS_MAX);
        Self { objects, object_count, ..self }
    }

    /// For whoever needs the source to be ready: the first blocking finding is the problem.
    pub fn refuse_blocking(findings: &[Self]) -> Result<(), Problem> {
        match findings.iter().find(|finding| finding.blocking) {
            None => Ok(()),
            Some(Self { reason, message, fix, .. }) => Err(Problem::new(*reason, message).with_fix(fix)),
        }
    }

    /// As the warning of a job.
    pub fn to_warning(&self) -> Warning {
        let (message, fix) = (self.message.clone(), self.fix.clone());
        Warning { reason: self.reason.as_str().to_owned(), message, fix }
    }
}

/// A blocking one.
impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let Problem { reason, message, fix } = problem;
        Self { reason, message, fix, objects: Vec::new(), object_count: 0, blocking: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_blocking_finding_is_the_problem() {
        let warning = Finding::warning(Reason::SizeAboveRecommended, "large");
        let fault = Finding::blocking(Reason::RowSecurityHidesRows, "hidden").with_fix("show");
        assert_eq!(Finding::refuse_blocking(std::slice::from_ref(&warning)), Ok(()));
        let other = Finding::blocking(Reason::ClientTooOld, "old");
        let problem = Finding::refuse_blocking(&[warning, fault, other]).unwrap_err();
        assert_eq!(problem, Problem::new(Reason::RowSecurityHidesRows, "hidden").with_fix("show"));
    }
}
