//! Policies that tests use.

/// A policy whose schedule does not fire while a test runs: the last day of the week, once.
pub fn quiet(name: &str) -> String {
    format!(
        "name = \"{name}\"\nsource_type = \"postgres\"\ntime_zone = \"Asia/Seoul\"\n\n[schedule]\nevery = \"week\"\n\
         on = [\"{}\"]\nat = [\"02:00\"]\n\n[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n",
        day_far_away()
    )
}

/// A weekday that is three days away.
fn day_far_away() -> &'static str {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is after 1970");
    DAYS[((now.as_secs() / 86_400 + 3) % 7) as usize]
}
