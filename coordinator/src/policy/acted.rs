//! What this version acts on. A document may say more than the scheduler and the jobs do today; that is refused when the policy is made,
//! so that nobody counts on a rule that nothing follows.

use vaultferry_proto::{Problem, Reason};

use super::{CatchUp, DEFAULT_RULE, Document};

/// Refuses a document that asks for more than is done, and names all of it.
pub fn check_acted_on(document: &Document) -> Result<(), Problem> {
    let schedule = &document.schedule;
    let mut faults = Vec::new();
    for rule in document.rules.iter().filter(|rule| rule.name != DEFAULT_RULE) {
        faults.push(format!("the rule {}: only the rule {DEFAULT_RULE} is followed", rule.name));
    }
    if document.rules.iter().any(|rule| rule.archive.is_some()) {
        faults.push("archive: points are copied there by hand only (vaultferry point archive)".to_owned());
    }
    if schedule.catch_up != CatchUp::Once {
        faults.push("catch_up = \"skip\": a missed run is always caught up once".to_owned());
    }
    if !schedule.jitter.is_zero()
        || !schedule.allowed.is_empty()
        || schedule.start_within != super::document::START_WITHIN
    {
        faults.push("jitter, start_within and allowed: a run starts at its time".to_owned());
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("this version does not do all that the policy asks for: {}", faults.join("; "));
    Err(Problem::new(Reason::InvalidPolicy, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(schedule: &str, rules: &str) -> Document {
        let text = format!(
            "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n{schedule}\n\
             [[rule]]\nname = \"Default\"\nvault = \"P30D\"\n{rules}"
        );
        crate::policy::parse(&text).expect("a valid document")
    }

    #[test]
    fn what_nothing_follows_is_refused_by_name() {
        assert!(check_acted_on(&document("", "")).is_ok());
        let monthly = "[[rule]]\nname = \"Monthly\"\nfirst_of = \"month\"\nvault = \"P6M\"\n";
        for (schedule, rules, named) in [
            ("", monthly, "the rule Monthly"),
            ("", "archive = \"P1Y\"\n", "archive"),
            ("catch_up = \"skip\"", "", "catch_up"),
            ("jitter = \"PT10M\"", "", "jitter"),
            ("start_within = \"PT2H\"", "", "start_within"),
        ] {
            let problem = check_acted_on(&document(schedule, rules)).expect_err(named);
            assert!(problem.message.contains(named), "{}", problem.message);
        }
    }
}
