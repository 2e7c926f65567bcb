//! Sizes, times and durations as people read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// "512 B", "1.5 KiB", "23.0 MiB": powers of 1024, one decimal.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // The rounding to one decimal must not print "1024.0 KiB".
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// RFC 3339 in the local zone, whole seconds; "-" for a time that is not set or out of range.
pub fn time(timestamp: Option<&prost_types::Timestamp>) -> String {
    match timestamp.and_then(instant) {
        Some(instant) => in_zone(instant, TimeZone::system()),
        None => "-".to_owned(),
    }
}

/// The day of that time in the local zone; "-" for a time that is not set or out of range.
pub fn date(timestamp: Option<&prost_types::Timestamp>) -> String {
    let instant = timestamp.and_then(instant);
    instant.map_or("-".to_owned(), |instant| instant.to_zoned(TimeZone::system()).date().to_string())
}

fn in_zone(instant: Timestamp, zone: TimeZone) -> String {
    instant.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// From one time to another: "0:07", "12:05", "3:00:00"; "-" when one is not set.
pub fn duration(from: Option<&prost_types::Timestamp>, to: Option<&prost_types::Timestamp>) -> String {
    let (Some(from), Some(to)) = (from.and_then(instant), to.and_then(instant)) else {
        return "-".to_owned();
    };
    let seconds = to.duration_since(from).as_secs().max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Between the two; 0 when one is not set.
pub fn milliseconds(from: Option<&prost_types::Timestamp>, to: Option<&prost_types::Timestamp>) -> u64 {
    let (Some(from), Some(to)) = (from.and_then(instant), to.and_then(instant)) else { return 0 };
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// "59 s", "59 min", "47 h", "12 days": one unit, rounded down.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// None when it is out of range.
pub fn instant(timestamp: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(timestamp.seconds, timestamp.nanos).ok()
}

/// For requests.
pub fn to_wire(instant: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: instant.as_second(), nanos: instant.subsec_nanosecond() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn sizes() {
        let shown = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, 3 << 30, u64::MAX].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "3.0 GiB", "16.0 EiB"]);
    }

    #[test]
    fn times() {
        let zone = TimeZone::get("Asia/Seoul").unwrap();
        assert_eq!(in_zone(Timestamp::UNIX_EPOCH, zone), "1970-01-01T09:00:00+09:00");
        assert_eq!((time(None), date(None)), ("-".to_owned(), "-".to_owned()));
        assert_eq!(time(Some(&at(i64::MAX))), "-");
        assert_eq!(duration(Some(&at(0)), Some(&at(65))), "1:05");
        assert_eq!(duration(Some(&at(0)), Some(&at(7265))), "2:01:05");
        assert_eq!(duration(Some(&at(9)), None), "-");
        assert_eq!((milliseconds(Some(&at(2)), Some(&at(5))), milliseconds(None, Some(&at(5)))), (3000, 0));
        let ages = [0, 59, 60, 3599, 3600, 172_799, 172_800].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 days"]);
    }
}
