//! What was found at a source or at a restore's target, for people.

use vaultferry_proto::control::v1::{PlanRestoreDatabaseResponse, ReadinessFinding, ValidateBackupInstanceResponse};
use vaultferry_proto::{Problem, Reason};

use super::table::{fields, printable};
use super::text::short;
use super::units::{age, size};

/// Objects that are printed for people; JSON has more of them.
const PRINTED: usize = 10;

/// The answer to `instance validate`.
pub fn validated(answer: &ValidateBackupInstanceResponse) -> String {
    let name = answer.instance.as_ref().map_or("the source", |instance| instance.name.as_str());
    let blocking = answer.findings.iter().filter(|finding| finding.blocking).count();
    let head = match blocking {
        0 => format!("{} is ready: a backup has all that it needs.", printable(name)),
        1 => format!("{} is not ready: one thing is missing.", printable(name)),
        count => format!("{} is not ready: {count} things are missing.", printable(name)),
    };
    let mut lines = vec![head];
    lines.extend(answer.findings.iter().map(finding));
    lines.join("\n\n")
}

/// The answer to `restore database --plan`.
pub fn plan(answer: &PlanRestoreDatabaseResponse) -> String {
    let known = |bytes: u64| if bytes == 0 { "not known".to_owned() } else { size(bytes) };
    let free = if answer.free_bytes_known { size(answer.free_bytes) } else { "not known".to_owned() };
    let estimate = match answer.estimate_restores {
        0 => "not known: no restore has completed here yet".to_owned(),
        1 => format!("about {} (an estimate from the rate of one restore)", age(answer.estimate_s)),
        count => format!("about {} (an estimate from the rate of {count} restores)", age(answer.estimate_s)),
    };
    let blocking = answer.findings.iter().filter(|finding| finding.blocking).count();
    let verdict = match blocking {
        0 => "can be restored; nothing was changed".to_owned(),
        1 => "cannot be restored: one thing is missing".to_owned(),
        count => format!("cannot be restored: {count} things are missing"),
    };
    let table = fields(&[
        ("point", short(&answer.point_id)),
        ("target", answer.target.clone()),
        ("plan", verdict),
        ("tables", if answer.tables == 0 { "not known".to_owned() } else { answer.tables.to_string() }),
        ("reads", known(answer.dump_bytes)),
        ("needs", known(answer.database_bytes)),
        ("free there", free),
        ("takes", estimate),
    ]);
    let mut parts = vec![table];
    parts.extend(answer.findings.iter().map(finding));
    parts.join("\n\n")
}

/// Why a source is not ready: its first blocking finding. What all of them need has been shown by then.
pub fn problem(answer: &ValidateBackupInstanceResponse) -> Option<Problem> {
    first_problem(&answer.findings)
}

/// The first blocking finding.
pub fn first_problem(findings: &[ReadinessFinding]) -> Option<Problem> {
    let first = findings.iter().find(|finding| finding.blocking)?;
    // An agent of another version may know more reasons.
    let reason = first.reason.parse::<Reason>().unwrap_or(Reason::PluginProtocol);
    Some(Problem::new(reason, &first.message).with_fix(&first.fix))
}

/// "missing: UserErrorMissingDBPermissions: …", then the objects, then the fix as it can be copied.
fn finding(finding: &ReadinessFinding) -> String {
    let kind = if finding.blocking { "missing" } else { "note" };
    let mut text = format!("{kind}: {}: {}", printable(&finding.reason), printable(finding.message.trim_end()));
    for object in finding.objects.iter().take(PRINTED) {
        text.push_str(&format!("\n  {}", printable(object)));
    }
    let shown = finding.objects.len().min(PRINTED) as u64;
    if finding.object_count > shown {
        text.push_str(&format!("\n  and {} more", finding.object_count - shown));
    }
    if !finding.fix.is_empty() {
        text.push_str(&format!("\n\n{}", printable(&finding.fix)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(reason: &str, blocking: bool, count: u64) -> ReadinessFinding {
        ReadinessFinding {
            reason: reason.to_owned(),
            message: format!("{reason} was seen"),
            fix: "-- as a superuser:\nGRANT a TO b;".to_owned(),
            objects: (0..count.min(100)).map(|number| format!("public.t{number}")).collect(),
            object_count: count,
            blocking,
        }
    }

    #[test]
    fn a_plan_says_what_it_does_not_know() {
        let mut answer = PlanRestoreDatabaseResponse {
            point_id: "3f9a01".repeat(10),
            target: "back on postgres://u@h/".to_owned(),
            dump_bytes: 2048,
            ..Default::default()
        };
        let text = plan(&answer);
        assert!(text.contains("free there: not known") && text.contains("no restore has completed"), "{text}");
        assert!(text.contains("can be restored; nothing was changed"), "{text}");
        (answer.free_bytes_known, answer.estimate_restores, answer.estimate_s) = (true, 2, 90);
        answer.findings.push(finding("RolesMissing", true, 1));
        let text = plan(&answer);
        assert!(text.contains("free there: 0 B") && text.contains("about 1 min (an estimate from"), "{text}");
        assert!(text.contains("one thing is missing") && text.contains("missing: RolesMissing: "), "{text}");
        assert_eq!(first_problem(&answer.findings).map(|problem| problem.reason), Some(Reason::RolesMissing));
    }

    #[test]
    fn all_findings_are_shown_and_the_first_blocking_one_is_the_failure() {
        let warning = finding("SizeAboveRecommended", false, 0);
        let mut answer = ValidateBackupInstanceResponse { findings: vec![warning], ..Default::default() };
        assert!(validated(&answer).starts_with("the source is ready"), "{}", validated(&answer));
        assert_eq!(problem(&answer), None);
        answer.findings.insert(0, finding("UserErrorMissingDBPermissions", true, 250));
        let text = validated(&answer);
        assert!(text.starts_with("the source is not ready: one thing is missing."), "{text}");
        assert!(text.contains("\n  public.t9\n  and 240 more\n\n-- as a superuser:\nGRANT a TO b;"), "{text}");
        assert!(text.contains("note: SizeAboveRecommended: "), "{text}");
        let problem = problem(&answer).unwrap();
        assert_eq!(problem.reason, Reason::UserErrorMissingDBPermissions);
        assert!(problem.fix.ends_with("GRANT a TO b;"), "{problem:?}");
    }
}
