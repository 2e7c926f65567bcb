//! A timeline as text: how many points each rule keeps, how that grows, which points are there at the end, and what becomes of those that
//! were there at the beginning.

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _};

use super::{Store, Timeline, TimelinePoint};

/// Lines of the growth table; more do not fit a screen.
const MAX_ROWS: usize = 40;
/// Lines of the list of points.
const MAX_POINTS: usize = 60;
/// Enough of an id to be unique in an instance.
const ID_DIGITS: usize = 16;
/// Characters of the longest bar.
const BAR: usize = 50;

impl Timeline {
    /// The timeline for people: three tables, of at most 120 lines and 100 columns where names of rules are short, and a fourth of at most 60
    /// lines when there were points at the beginning.
    pub fn text(&self) -> String {
        let zone = TimeZone::get(&self.time_zone).unwrap_or(TimeZone::UTC);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "Policy {}, from {} to {} ({})",
            self.policy,
            day(self.from, &zone),
            day(self.to, &zone),
            self.time_zone
        );
        let _ = writeln!(text);
        self.by_rule(&mut text, &zone);
        let _ = writeln!(text);
        self.growth(&mut text, &zone);
        let _ = writeln!(text);
        self.list(&mut text, &zone);
        self.existing(&mut text, &zone);
        text
    }

    fn by_rule(&self, text: &mut String, zone: &TimeZone) {
        let width = self.rules.iter().map(String::len).chain([4]).max().unwrap_or(4);
        let _ = writeln!(
            text,
            "{:width$}  {:>7}  {:>7}  {:>7}  OLDEST KEPT  LAST UNTIL",
            "RULE", "MADE", "VAULT", "ARCHIVE"
        );
        for rule in &self.rules {
            let of_rule = || self.points.iter().filter(|point| point.rule == *rule);
            let made = of_rule().filter(|point| point.id.is_none()).count();
            let oldest = of_rule().find(|point| point.exists(self.to)).map(|point| day(point.time, zone));
            let until = of_rule().filter(|point| point.exists(self.to)).filter_map(end).max();
            let _ = writeln!(
                text,
                "{rule:width$}  {made:>7}  {:>7}  {:>7}  {:11}  {}",
                of_rule().filter(|point| point.is_in(Store::Vault, self.to)).count(),
                of_rule().filter(|point| point.is_in(Store::Archive, self.to)).count(),
                oldest.unwrap_or_else(|| "-".to_owned()),
                until.map_or_else(|| "-".to_owned(), |until| day(until, zone)),
            );
        }
    }

    fn growth(&self, text: &mut String, zone: &TimeZone) {
        let rows: Vec<(Timestamp, usize, usize)> = self.dates(zone).into_iter().map(|date| self.counts(date)).collect();
        let most = rows.iter().map(|(_, vault, archive)| vault + archive).max().unwrap_or(0).max(1);
        let _ = writeln!(text, "{:10}  {:>7}  {:>7}  # vault  = archive", "DATE", "VAULT", "ARCHIVE");
        for (date, vault, archive) in rows {
            // A store that has a point has a mark.
            let bar = |count: usize| (count * BAR).div_ceil(most);
            let line = format!(
                "{:10}  {vault:>7}  {archive:>7}  {}{}",
                day(date, zone),
                "#".repeat(bar(vault)),
                "=".repeat(bar(archive))
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }

    fn list(&self, text: &mut String, zone: &TimeZone) {
        let width = self.rules.iter().map(String::len).chain([4]).max().unwrap_or(4);
        let there: Vec<&TimelinePoint> = self.at(self.to).collect();
        let _ = writeln!(text, "Points on {}: {}", day(self.to, zone), there.len());
        let _ = writeln!(text, "{:16}  {:width$}  {:11}  ARCHIVE UNTIL", "TIME", "RULE", "VAULT UNTIL");
        for point in there.iter().take(MAX_POINTS) {
            let _ = writeln!(text, "{}", line(point, width, zone));
        }
        if there.len() > MAX_POINTS {
            let _ = writeln!(text, "and {} more", there.len() - MAX_POINTS);
        }
    }

    fn existing(&self, text: &mut String, zone: &TimeZone) {
        let points = || self.points.iter().filter_map(|point| Some((point.id.as_deref()?, point)));
        let (count, width) = (points().count(), self.rules.iter().map(String::len).chain([4]).max().unwrap_or(4));
        if count == 0 {
            return;
        }
        let _ = writeln!(text, "\nPoints that exist now: {count}");
        let _ = writeln!(text, "{:16}  {:16}  {:width$}  {:11}  ARCHIVE UNTIL", "ID", "TIME", "RULE", "VAULT UNTIL");
        for (id, point) in points().take(MAX_POINTS) {
            let id: String = id.chars().take(ID_DIGITS).collect();
            let _ = writeln!(text, "{id:16}  {}", line(point, width, zone));
        }
        if count > MAX_POINTS {
            let _ = writeln!(text, "and {} more", count - MAX_POINTS);
        }
    }

    fn counts(&self, time: Timestamp) -> (Timestamp, usize, usize) {
        let count = |store: Store| self.points.iter().filter(|point| point.is_in(store, time)).count();
        (time, count(Store::Vault), count(Store::Archive))
    }

    /// The beginning, the end, and even steps between them.
    fn dates(&self, zone: &TimeZone) -> Vec<Timestamp> {
        let steps: [Span; 8] = [1.day(), 1.week(), 1.month(), 3.months(), 1.year(), 3.years(), 10.years(), 100.years()];
        let begin = self.from.to_zoned(zone.clone());
        let mut dates = Vec::new();
        for step in steps {
            let next = |count: i64| begin.checked_add(step.checked_mul(count).ok()?).ok().map(|date| date.timestamp());
            let inner = (0..).map_while(next).take_while(|date| *date < self.to);
            dates = inner.take(MAX_ROWS).collect();
            if dates.len() < MAX_ROWS {
                break;
            }
        }
        dates.push(self.to);
        dates
    }
}

/// Time, rule, and until when it is where.
fn line(point: &TimelinePoint, width: usize, zone: &TimeZone) -> String {
    let until = |store: Store| {
        let stay = point.stays.iter().find(|stay| stay.store == store);
        // Open: it is the last good point, or held. A time that is over or that has not begun is told as well: it says where the point was or will be.
        stay.map_or_else(|| "-".to_owned(), |stay| stay.until.map_or("open".to_owned(), |until| day(until, zone)))
    };
    let time = zone.to_datetime(point.time).strftime("%F %H:%M");
    let line = format!("{time}  {:width$}  {:11}  {}", point.rule, until(Store::Vault), until(Store::Archive));
    line.trim_end().to_owned()
}

fn end(point: &TimelinePoint) -> Option<Timestamp> {
    point.stays.iter().map(|stay| stay.until).max_by_key(|until| until.unwrap_or(Timestamp::MAX)).flatten()
}

fn day(time: Timestamp, zone: &TimeZone) -> String {
    zone.to_datetime(time).strftime("%F").to_string()
}
