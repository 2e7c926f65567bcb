//! What was found at a source, for people.

use vaultferry_proto::control::v1::{ReadinessFinding, ValidateBackupInstanceResponse};
use vaultferry_proto::{Problem, Reason};

use super::table::printable;

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

/// Why a source is not ready: its first blocking finding. What all of them need has been shown by then.
pub fn problem(answer: &ValidateBackupInstanceResponse) -> Option<Problem> {
    let first = answer.findings.iter().find(|finding| finding.blocking)?;
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
