//! What this version acts on. A document may say more than the scheduler and the jobs do today; that is refused when the policy is made,
//! so that nobody counts on a rule that nothing follows.

use vaultferry_proto::{Problem, Reason};

use super::Document;

/// Refuses a document that asks for more than is done, and names all of it.
pub fn check_acted_on(document: &Document) -> Result<(), Problem> {
    let rules = document.rules.iter().filter(|rule| rule.archive.is_some());
    let named: Vec<&str> = rules.map(|rule| rule.name.as_str()).collect();
    if named.is_empty() {
        return Ok(());
    }
    let message = format!(
        "this version does not do all that the policy asks for: archive (rule {}): points are copied to the archive store by hand only",
        named.join(", ")
    );
    let fix = "Leave archive out, and copy single points with `vaultferry point archive`.";
    Err(Problem::new(Reason::InvalidPolicy, message).with_fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_follows_is_refused_by_name() {
        let document = |archive: &str| {
            let text = format!(
                "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n\
                 jitter = \"PT10M\"\ncatch_up = \"skip\"\n[[rule]]\nname = \"Default\"\nvault = \"P30D\"\n\
                 [[rule]]\nname = \"Monthly\"\nfirst_of = \"month\"\nvault = \"P6M\"\n{archive}"
            );
            crate::policy::parse(&text).expect("a valid document")
        };
        assert!(check_acted_on(&document("")).is_ok());
        let problem = check_acted_on(&document("archive = \"P1Y\"\n")).expect_err("refused");
        assert!(problem.message.contains("archive (rule Monthly)"), "{}", problem.message);
    }
}
